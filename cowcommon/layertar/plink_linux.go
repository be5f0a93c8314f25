package layertar

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// plinks keeps the files below ".wh..wh.plnk", where aufs put files with hard links across layers. Entries refer to
// them as hard links by the last component of their names, and get copies. The data of all of them is in one file,
// which has no name.
type plinks struct {
	file  *os.File
	size  int64
	files map[string]plink
}

type plink struct {
	hdr *tar.Header
	at  int64 // of the data
}

func (p *plinks) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}

// keepPlink keeps the current entry for the links that refer to it.
func (a *applier) keepPlink(name string, hdr *tar.Header) error {
	p := &a.plinks
	if p.file == nil {
		f, err := unnamedFile(a.dirs.root.fd.fd)
		if err != nil {
			return fmt.Errorf("temporary file: %w", err)
		}
		p.file, p.files = f, make(map[string]plink)
	}
	if len(p.files) >= maxPlinks {
		return fmt.Errorf("%w: more than %d files of aufs hard links", ErrMalformed, maxPlinks)
	}
	n, err := io.Copy(p.file, a.es.tr)
	if err != nil {
		return readError(err)
	}
	p.files[path.Base(name)] = plink{hdr, p.size}
	p.size += n
	return nil
}

// maxPlinks bounds the headers that are kept.
const maxPlinks = 1 << 16

// putPlink makes a copy of a kept file.
func (a *applier) putPlink(d *dir, name, link string) error {
	kept, ok := a.plinks.files[path.Base(link)]
	if !ok {
		return fmt.Errorf("%w: a hard link to %s, which the layer does not have", ErrMalformed, treeat.Quote(link))
	}
	m, err := metaOf(kept.hdr, a.opts.IDMap)
	if err != nil {
		return err
	}
	st, err := a.lookup(d, name)
	if err != nil {
		return err
	}
	return a.putFile(d, name, &st, m, kept.hdr.Size, io.NewSectionReader(a.plinks.file, kept.at, kept.hdr.Size))
}

// unnamedFile makes a file in a directory that is gone when it is closed.
func unnamedFile(dirfd int) (*os.File, error) {
	// Not O_TMPFILE, which not every filesystem has.
	for {
		name := ".layertar-" + rand.Text()
		fd, err := treeat.Open(dirfd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(fd), name)
		if err := unix.Unlinkat(dirfd, name, 0); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
}
