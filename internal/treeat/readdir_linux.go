package treeat

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// Dirent is one name of a directory.
type Dirent struct {
	Name string
	Type uint8 // unix.DT_*; DT_UNKNOWN where the filesystem does not tell
}

// ReadDir reads some names of an open directory (struct linux_dirent64 of getdents64(2)), without "." and
// "..". It returns none at the end.
func ReadDir(fd int, buf []byte, names []Dirent) ([]Dirent, error) {
	names = names[:0]
	for len(names) == 0 {
		var n int
		err := eintr.Ignore(func() (err error) { n, err = unix.Getdents(fd, buf); return err })
		if err != nil || n <= 0 {
			return nil, err
		}
		for b := buf[:n]; len(b) > 19; {
			size := binary.NativeEndian.Uint16(b[16:])
			typ, name := b[18], b[19:size]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "." && s != ".." {
				names = append(names, Dirent{s, typ})
			}
			b = b[size:]
		}
	}
	return names, nil
}
