package trees

import (
	"context"
	"errors"
	"os"
)

// sizer adds up sizes.
type sizer struct {
	ctx  context.Context
	sum  int64
	seen map[inode]bool // of files with several names
}

func size(ctx context.Context, f *os.File) (int64, error) {
	d, err := root(f, nil)
	if err != nil {
		return 0, err
	}
	s := &sizer{ctx: ctx, seen: make(map[inode]bool)}
	err = errors.Join(s.add(d, 0), d.close())
	return s.sum, err
}

func (s *sizer) add(d *dir, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		e, err := d.entry(name)
		if err != nil {
			return err
		}
		switch {
		case e.isDir():
			sub, err := d.sub(name)
			if err != nil {
				return err
			}
			if err := errors.Join(s.add(sub, depth+1), sub.close()); err != nil {
				return err
			}
		case e == nil || !e.isPlain():
		case e.isLink():
			if !s.seen[e.inode()] {
				s.sum += e.st.Size
			}
			s.seen[e.inode()] = true
		default:
			s.sum += e.st.Size
		}
	}
	return nil
}
