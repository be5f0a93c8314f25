package sharedroot

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// noteXattr holds the times that a directory is to have when the fold has ended, as text: access, then modification.
const noteXattr = "trusted.cowshed.times"

const noteFormat = "%d.%09d %d.%09d"

// writeNote records times.
func writeNote(file treeat.File, st *unix.Stat_t) error {
	text := fmt.Sprintf(noteFormat, st.Atim.Sec, st.Atim.Nsec, st.Mtim.Sec, st.Mtim.Nsec)
	if err := file.SetXattr(noteXattr, []byte(text)); err != nil {
		return fmt.Errorf("note times: %w", err)
	}
	return nil
}

// readNote reads times that are noted. Text that no fold has written counts as none.
func readNote(file treeat.File) (times [2]unix.Timespec, is bool, err error) {
	var buf [80]byte
	n, err := file.GetXattr(noteXattr, buf[:])
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ERANGE):
		return times, false, nil
	case err != nil:
		return times, false, fmt.Errorf("noted times: %w", err)
	}
	_, err = fmt.Sscanf(string(buf[:n]), noteFormat, &times[0].Sec, &times[0].Nsec, &times[1].Sec, &times[1].Nsec)
	return times, err == nil, nil
}

// withNote replaces the times in st by those that are noted.
func withNote(file treeat.File, st *unix.Stat_t) error {
	times, is, err := readNote(file)
	if err == nil && is {
		st.Atim, st.Mtim = times[0], times[1]
	}
	return err
}

// removeNote removes a record of times.
func removeNote(file treeat.File) error {
	if err := file.RemoveXattr(noteXattr); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove noted times: %w", err)
	}
	return nil
}
