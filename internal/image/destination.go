package image

import (
	"context"
	"errors"
	"io"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// destination opens the place that ref names for writing. Nothing is there before the image is complete,
// save blobs and the mark of a layout, which are no image by themselves.
func (s *Store) destination(ctx context.Context, ref Reference, opts ExportOptions) (destination, error) {
	switch ref.Transport {
	case OCILayout:
		if ref.Path == Stdio {
			return nil, fault.New(errdefs.ErrInvalidArgument, "a directory cannot be written to standard output, use %s:-", OCIArchive)
		}
		return newLayoutWriter(ctx, ref.Path)
	case OCIArchive, DockerArchive:
		return newArchiveWriter(ref, opts)
	case Registry:
		return &pusher{ref: ref, opts: opts.Registries}, nil
	case Containerd:
		return s.newContainerdWriter(ctx, ref, opts)
	case RootFS:
		return nil, fault.New(errdefs.ErrInvalidArgument, "a root filesystem is not an image: write its tar with cowshed diff --whole")
	}
	return nil, fault.New(errdefs.ErrInvalidArgument, "name the kind: oci:DIR, oci-archive:FILE, docker-archive:FILE, docker://NAME or containerd://NAMESPACE/NAME")
}

var (
	_ destination = (*layoutWriter)(nil)
	_ destination = (*archiveWriter)(nil)
	_ destination = (*pusher)(nil)
	_ haver       = (*pusher)(nil)
)

// spooled keeps blobs in temporary files until the image is complete.
type spooled struct{ removers []func() error }

func (s *spooled) newBlob(context.Context, bool) (upload, error) {
	f, remove, err := newSpool()
	if err != nil {
		return nil, err
	}
	s.removers = append(s.removers, remove)
	return fileUpload{f}, nil
}

func (s *spooled) close() error {
	var errs []error
	for _, remove := range s.removers {
		errs = append(errs, remove())
	}
	s.removers = nil
	return errors.Join(errs...)
}

// open reads a blob that is in a file from its start. It can be open several times.
func (b *blob) open() io.Reader { return io.NewSectionReader(b.file, 0, b.size) }

// pusher writes to a registry. Layers that the registry cannot have yet go there while they are compressed, the others only if they
// are not there.
type pusher struct {
	spooled
	ref     Reference
	opts    RegistryOptions
	uploads []*registryUpload
}

func (p *pusher) newBlob(ctx context.Context, fresh bool) (upload, error) {
	if !fresh {
		return p.spooled.newBlob(ctx, false)
	}
	u, err := startUpload(ctx, p.ref, p.opts)
	if err != nil {
		return nil, err
	}
	p.uploads = append(p.uploads, u)
	return u, nil
}

func (p *pusher) close() error {
	for _, u := range p.uploads {
		u.giveUp()
	}
	p.uploads = nil
	return p.spooled.close()
}

func (p *pusher) finish(ctx context.Context, image *writtenImage) error {
	return push(ctx, p.ref, image, p.opts)
}
