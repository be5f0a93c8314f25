package layertar

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// xzMemory bounds the memory of the program xz, and is more than it needs for any of its levels (xz(1)).
const xzMemory = "--memlimit-decompress=256MiB"

// unxz is xz data that the program xz decompresses, as tar and Docker have it.
type unxz struct {
	cmd    *exec.Cmd
	out    io.ReadCloser
	says   bytes.Buffer
	source errorKeeper
	ended  bool
	err    error
}

// newUnxz starts the program. Returns errdefs.ErrNotImplemented if it is not installed.
func newUnxz(r io.Reader) (*unxz, error) {
	program, err := exec.LookPath("xz")
	if err != nil {
		return nil, fault.New(errdefs.ErrNotImplemented, "layertar: xz compression needs the program xz (package xz-utils): %w", err)
	}
	u := &unxz{cmd: exec.Command(program, "--decompress", "--stdout", "--quiet", "--no-adjust", xzMemory), source: errorKeeper{r: r}}
	u.cmd.Stdin, u.cmd.Stderr = &u.source, &u.says
	if u.out, err = u.cmd.StdoutPipe(); err == nil {
		err = u.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("layertar: xz: %w", err)
	}
	return u, nil
}

// Read implements io.Reader.
func (u *unxz) Read(p []byte) (int, error) {
	if u.ended {
		return 0, u.err
	}
	n, err := u.out.Read(p)
	if err == nil || n > 0 {
		return n, nil
	}
	u.end()
	return 0, u.err
}

// end waits for the program, and says how it ended.
func (u *unxz) end() {
	u.ended, u.err = true, io.EOF
	err := u.cmd.Wait()
	switch {
	case u.source.err != nil: // and so the data was cut short
		u.err = u.source.err
	case err != nil:
		u.err = fmt.Errorf("%w: %w: %s", ErrMalformed, err, bytes.TrimSpace(u.says.Bytes()))
	}
}

// Close ends the program.
func (u *unxz) Close() error {
	if u.ended {
		return nil
	}
	_ = u.cmd.Process.Kill() // it may have ended
	u.end()
	return nil
}

// errorKeeper keeps the error that its reader ends with, apart from io.EOF.
type errorKeeper struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		k.err = err
	}
	return n, err
}
