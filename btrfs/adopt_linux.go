package btrfs

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// parentXattr is an extended attribute of the root of an adopted volume, which records the parent: the volume's UUID, a
// space, and the parent's UUID. The kernel's own record names the foreign subvolume.
const parentXattr = "trusted.cowshed.parent"

// Adopt implements cowcommon.Adopter. The volume is a snapshot of the subvolume whose root directory is source.
func (b *Backend) Adopt(ctx context.Context, name, parent, source string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("adopt volume", name, fault.From(source), b.adopt(ctx, name, parent, source, opts))
}

func (b *Backend) adopt(ctx context.Context, name, parent, source string, opts cowcommon.VolumeOptions) error {
	if err := b.checkFree(name); err != nil {
		return err
	}
	if parent != "" {
		if err := cowcommon.CheckID(parent); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	src, err := b.openForeign(source)
	if err != nil {
		return err
	}
	defer src.File.Close()
	if opts.Limit.Bytes != 0 {
		// As in clone.
		if _, err := b.quotas.Enable(ctx, opts.Limit.Scope); err != nil {
			return err
		}
	}
	if parent == "" {
		return b.adoptFrom(ctx, name, btrfsctl.UUID{}, src, opts)
	}
	return b.seals().Clone(ctx, parent, func(p *subvolume) error {
		if err := b.checkRelated(p, src, parent); err != nil {
			return err
		}
		return b.adoptFrom(ctx, name, p.info.UUID, src, opts)
	})
}

// CheckAdopt implements cowcommon.Adopter.
func (b *Backend) CheckAdopt(_ context.Context, parent, source, planned string) error {
	return fault.Wrap("check adopting of volume", source, b.checkAdopt(parent, source, planned))
}

func (b *Backend) checkAdopt(parent, source, planned string) error {
	src, err := b.openForeign(source)
	if err != nil {
		return err
	}
	defer src.File.Close()
	var p *subvolume
	switch {
	case parent != "":
		p, err = b.openVolume(parent)
	case planned != "":
		p, err = b.openForeign(planned)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	defer p.File.Close()
	return b.checkRelated(p, src, parent+planned)
}

// checkAdoptInto is CheckAdopt for a home that is not there yet.
func checkAdoptInto(home, source, planned string) (err error) {
	above, err := detect.Probe(home)
	if err != nil {
		return err
	}
	b := &Backend{home: home}
	if b.fs, err = os.OpenFile(above.Path, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	defer b.fs.Close()
	if b.fsUUID, err = btrfsctl.FilesystemUUID(int(b.fs.Fd())); err != nil {
		return fmt.Errorf("filesystem UUID: %w", err)
	}
	return b.checkAdopt("", source, planned)
}

// checkRelated returns errdefs.ErrNotImplemented if a parent, or the subvolume that it will be adopted from, and a foreign
// subvolume have no common ancestor: they cannot be compared natively.
func (b *Backend) checkRelated(parent, src *subvolume, name string) error {
	related, err := b.related(parent, src)
	if err != nil {
		return fmt.Errorf("find common ancestor: %w", err)
	}
	if !related {
		return fault.New(errdefs.ErrNotImplemented, "it has no common ancestor with the parent %q", name)
	}
	return nil
}

func (b *Backend) adoptFrom(ctx context.Context, name string, parent btrfsctl.UUID, src *subvolume, opts cowcommon.VolumeOptions) error {
	limit, after, err := b.quotas.Inherit(ctx, opts.Limit, src.info.ID)
	if err != nil {
		return err
	}
	return b.stage(ctx, name, opts, after, recipe{
		create: func(staged string) error { return snapshotTo(src, b.dirs.staging, staged, limit) },
		finish: func(dir *subvolume) error { return recordParent(dir, parent) },
	})
}

// openForeign opens the root of a subvolume that is no volume of this Backend. Nobody locks it.
func (b *Backend) openForeign(path string) (*subvolume, error) {
	if !filepath.IsAbs(path) {
		return nil, fault.New(errdefs.ErrInvalidArgument, "%q is not an absolute path", path)
	}
	file, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		err = fault.New(errdefs.ErrNotImplemented, "%s: %w", path, errNotSubvolume)
	}
	if err != nil {
		return nil, err
	}
	s := &subvolume{File: file}
	if s.info, err = b.foreignInfo(s); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return s, nil
}

// foreignInfo describes a subvolume that can be adopted.
func (b *Backend) foreignInfo(s *subvolume) (info btrfsctl.Subvolume, err error) {
	uuid, err := btrfsctl.FilesystemUUID(s.fd())
	if errors.Is(err, unix.ENOTTY) || err == nil && uuid != b.fsUUID {
		return info, fault.New(errdefs.ErrNotImplemented, "%s is not on the filesystem of %s", s.Name(), b.home)
	}
	if err != nil {
		return info, fmt.Errorf("filesystem UUID: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(s.fd(), &stat); err != nil {
		return info, err
	}
	if stat.Ino != btrfsctl.FirstFreeObjectID {
		return info, fault.New(errdefs.ErrNotImplemented, "%s: %w", s.Name(), errNotSubvolume)
	}
	if info, err = btrfsctl.Info(s.fd()); err != nil {
		return info, fmt.Errorf("subvolume %s: %w", s.Name(), err)
	}
	if info.ParentID == b.dirs.subvolumesID && info.DirID == b.dirs.subvolumesIno {
		return info, fault.New(errdefs.ErrInvalidArgument, "this home has it as layer %q: clone that layer", info.Name)
	}
	nested, err := b.nestedIn(info.ID)
	if err == nil && len(nested) > 0 {
		err = fault.New(errdefs.ErrNotImplemented, "a snapshot would lack the subvolumes nested in it")
	}
	return info, err
}

// recordParent records the parent of an adopted volume, or that it has none if parent is zero.
func recordParent(volume *subvolume, parent btrfsctl.UUID) error {
	if parent != (btrfsctl.UUID{}) {
		value := volume.info.UUID.String() + " " + parent.String()
		if err := unix.Fsetxattr(volume.fd(), parentXattr, []byte(value), 0); err != nil {
			return fmt.Errorf("record parent: %w", err)
		}
		return nil
	}
	// The foreign subvolume may have been adopted itself.
	if err := unix.Fremovexattr(volume.fd(), parentXattr); err != nil && !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("remove the record of another parent: %w", err)
	}
	return nil
}

// parentOf returns the UUID of the volume that a subvolume was made from. It is the recorded parent, unless the kernel
// knows a volume of which the subvolume is a snapshot. fd is the root of the subvolume.
func (b *Backend) parentOf(fd int, info btrfsctl.Subvolume) (btrfsctl.UUID, error) {
	recorded, ok := recordedParent(fd, info.UUID)
	if !ok {
		return info.ParentUUID, nil
	}
	name, err := b.parentName(info.ParentUUID)
	if err != nil || name != "" {
		return info.ParentUUID, err
	}
	return recorded, nil
}

// recordedParent reads the record of an adopted volume.
func recordedParent(fd int, own btrfsctl.UUID) (parent btrfsctl.UUID, ok bool) {
	var value [2*uuidLen + 1]byte
	n, err := unix.Fgetxattr(fd, parentXattr, value[:])
	if err != nil {
		return parent, false
	}
	return parseRecord(string(value[:n]), own)
}

// parseRecord parses the record of the volume with the UUID own. That of another volume, of which this volume is a
// snapshot, does not count.
func parseRecord(record string, own btrfsctl.UUID) (parent btrfsctl.UUID, ok bool) {
	mine, uuid, _ := strings.Cut(record, " ")
	if mine != own.String() {
		return parent, false
	}
	return parseUUID(uuid)
}

// uuidLen is the length of a UUID in a record.
const uuidLen = 36

// parseUUID is the inverse of btrfsctl.UUID.String.
func parseUUID(s string) (uuid btrfsctl.UUID, ok bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(uuid) || btrfsctl.UUID(b).String() != s {
		return uuid, false
	}
	return btrfsctl.UUID(b), true
}
