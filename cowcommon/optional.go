package cowcommon

import (
	"bytes"
	"context"
	"io"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/quota"
)

// Unwrapper is a Backend around another, which may have more of the optional interfaces.
type Unwrapper interface {
	Unwrap() Backend
}

// As looks for the optional interface T in backend, and then in each Backend that the former wraps. It returns the
// first that implements T.
func As[T any](backend Backend) (found T, ok bool) {
	for {
		if found, ok = backend.(T); ok {
			return found, true
		}
		wrapper, is := backend.(Unwrapper)
		if !is {
			return found, false
		}
		backend = wrapper.Unwrap()
	}
}

// Complete is a Backend with all of the optional interfaces except Examiner, Scratcher, Retainer, Leaver, Adopter,
// Settler, Forker, Exchanger, Placer, Spacer, Sharer and Identifier.
type Complete interface {
	Backend
	Sealer
	Renamer
	SpecMounter
	Hinter
	Limiter
	Streamer
	Keeper
}

func cannot(operation string, backend Backend) error {
	return fault.New(errdefs.ErrNotImplemented, "%s: a %T cannot", operation, backend)
}

// Placer is a Backend whose home does not tell where the volumes are.
type Placer interface {
	// Place names the place of the volumes. Two Backends on one home have the same volumes only if their places are the same.
	Place() string
}

// Place is Placer.Place. It returns "" if the backend is no Placer: its volumes are in its home.
func Place(backend Backend) string {
	if p, ok := As[Placer](backend); ok {
		return p.Place()
	}
	return ""
}

// Spacer is a Backend whose home does not tell how much space the volumes have.
type Spacer interface {
	// Free is the space that is left for data of volumes, in bytes. Limits of single volumes do not count.
	Free(ctx context.Context) (uint64, error)
}

// Free is Spacer.Free. Returns ErrNotImplemented if the backend is no Spacer: the filesystem of its home has the space.
func Free(ctx context.Context, backend Backend) (uint64, error) {
	if s, ok := As[Spacer](backend); ok {
		return s.Free(ctx)
	}
	return 0, cannot("measure space", backend)
}

// Sealer is a Backend that can seal a volume before others are cloned from it. The snapshotter needs one.
type Sealer interface {
	// Seal makes an unused volume read-only for good, and makes its content survive a power cut. A sealed volume
	// stays as it is, mounted or not. Returns ErrFailedPrecondition if the volume is in use; it is then unchanged.
	Seal(ctx context.Context, name string) error
}

// Seal is Sealer.Seal. Returns ErrNotImplemented if the backend is no Sealer.
func Seal(ctx context.Context, backend Backend, name string) error {
	if s, ok := As[Sealer](backend); ok {
		return s.Seal(ctx, name)
	}
	return cannot("seal", backend)
}

// Renamer is a Backend that can rename volumes. Importing images needs one.
type Renamer interface {
	// Rename gives a volume that is neither in use nor in view another name. Returns ErrAlreadyExists if the name is
	// taken; it has then changed nothing.
	Rename(ctx context.Context, name, to string) error
}

// Rename is Renamer.Rename. Returns ErrNotImplemented if the backend is no Renamer.
func Rename(ctx context.Context, backend Backend, name, to string) error {
	if r, ok := As[Renamer](backend); ok {
		return r.Rename(ctx, name, to)
	}
	return cannot("rename", backend)
}

// MountSpec is how a volume is mounted with mount(2). The last element of Source, up to an "@", or of an option
// subvol= is the volume's name.
type MountSpec struct {
	Type    string
	Source  string
	Options []string // without "ro" and "rw"
}

// SpecMounter is a Backend whose volumes others can mount. The snapshotter needs one.
type SpecMounter interface {
	// MountSpec says how others can mount a volume, without this process's help. Such mounts are not counted. Like any
	// other mount, they keep the volume from being sealed or removed.
	MountSpec(ctx context.Context, name string, readOnly bool) (MountSpec, error)
	// CheckMountSpec reports whether volumes in this home can have a MountSpec. Returns ErrFailedPrecondition if no
	// MountSpec can express the home's path.
	CheckMountSpec() error
}

// Hinter is a Backend whose filesystem lists changes. Without it, both trees are walked.
type Hinter interface {
	// Hints says where two views of this backend may differ, top being the later one. Returns ErrNoHints (a
	// *treediff.NoHintsError with the reason) if the filesystem cannot say. The caller then walks both views. A Comparer
	// walks both after any other error too, unless its context has ended.
	Hints(ctx context.Context, base, top View) (*treediff.Hints, error)
}

// Hints is Hinter.Hints. Returns a *treediff.NoHintsError if the backend is no Hinter.
func Hints(ctx context.Context, backend Backend, base, top View) (*treediff.Hints, error) {
	if h, ok := As[Hinter](backend); ok {
		return h.Hints(ctx, base, top)
	}
	return nil, &treediff.NoHintsError{Reason: "backend", Err: cannot("say where to look", backend)}
}

// LiveView is a View of a volume that is written to, which can be read faster through the volume's own tree.
type LiveView interface {
	// Live is the volume's own tree, for reading files that have not changed since, or nil.
	Live() *layertar.Live
}

func liveOf(v View) *layertar.Live {
	if l, ok := v.(LiveView); ok {
		return l.Live()
	}
	return nil
}

// Limiter is a Backend whose filesystem counts the data of volumes, and can limit it.
type Limiter interface {
	// Usage returns the size of a volume's data. Its cost does not depend on that size. Returns ErrNotImplemented if
	// quotas are off, so that the filesystem does not count.
	Usage(ctx context.Context, name string) (quota.Usage, error)
	// SetLimit replaces a volume's limit; the zero Limit removes it.
	SetLimit(ctx context.Context, name string, limit quota.Limit) error
}

// Usage is Limiter.Usage. Returns ErrNotImplemented if the backend is no Limiter.
func Usage(ctx context.Context, backend Backend, name string) (quota.Usage, error) {
	if l, ok := As[Limiter](backend); ok {
		return l.Usage(ctx, name)
	}
	return quota.Usage{}, cannot("count", backend)
}

// SetLimit is Limiter.SetLimit. Returns ErrNotImplemented if the backend is no Limiter.
func SetLimit(ctx context.Context, backend Backend, name string, limit quota.Limit) error {
	if l, ok := As[Limiter](backend); ok {
		return l.SetLimit(ctx, name, limit)
	}
	return cannot("limit", backend)
}

// ChangesSizer is a Backend that keeps the changes of some volumes apart.
type ChangesSizer interface {
	// ChangesSize returns the sum of the sizes of the regular files that a volume has apart from base, each once however many
	// names it has: those that were made and those that were changed, even back. Returns ErrNotImplemented if the volume does
	// not have its changes to base apart.
	ChangesSize(ctx context.Context, name, base string) (int64, error)
}

// ChangesSize is ChangesSizer.ChangesSize. Returns ErrNotImplemented if the backend is no ChangesSizer.
func ChangesSize(ctx context.Context, backend Backend, name, base string) (int64, error) {
	if s, ok := As[ChangesSizer](backend); ok {
		return s.ChangesSize(ctx, name, base)
	}
	return 0, cannot("measure changes", backend)
}

// UnusedReader is a Backend that can show some volumes without a snapshot while nobody uses them.
type UnusedReader interface {
	// ReadUnused calls do with views of a volume that nobody uses and of base. They end with do. Others wait for the end of
	// do before they use the volume, so the context of do ends soon.
	//
	// Returns ErrNotImplemented if the volume does not have its changes to base apart. Returns ErrFailedPrecondition if
	// somebody uses the volume, or has used it before do returned. After an error, the work of do counts for nothing.
	ReadUnused(ctx context.Context, name, base string, do func(ctx context.Context, top, base View) error) error
}

// ReadUnused is UnusedReader.ReadUnused. Returns ErrNotImplemented if the backend is no UnusedReader.
func ReadUnused(ctx context.Context, backend Backend, name, base string, do func(ctx context.Context, top, base View) error) error {
	if r, ok := As[UnusedReader](backend); ok {
		return r.ReadUnused(ctx, name, base, do)
	}
	return cannot("read without a view", backend)
}

// Streamer is a Backend with native streams of volumes.
type Streamer interface {
	// Send writes the native stream of top, incremental from base unless base is nil.
	Send(ctx context.Context, w io.Writer, base, top View) error
	// Receive makes a volume from a native stream. source names the volume on which an incremental stream builds, and
	// is "" for a full stream. That volume is in use meanwhile. Receive reads r to its end before the volume has its
	// name. An error of r, or bytes after the native stream, make it fail.
	Receive(ctx context.Context, name, source string, r io.Reader) error
}

// Send is Streamer.Send. Returns ErrNotImplemented if the backend is no Streamer.
func Send(ctx context.Context, backend Backend, w io.Writer, base, top View) error {
	if s, ok := As[Streamer](backend); ok {
		return s.Send(ctx, w, base, top)
	}
	return cannot("send", backend)
}

// Receive is Streamer.Receive. Returns ErrNotImplemented if the backend is no Streamer.
func Receive(ctx context.Context, backend Backend, name, source string, r io.Reader) error {
	if s, ok := As[Streamer](backend); ok {
		return s.Receive(ctx, name, source, r)
	}
	return cannot("receive", backend)
}

// Identity says how the native streams of a filesystem name the content of a volume.
type Identity struct {
	// IDs are the names of the volume in streams. A stream of the volume has the first. A stream that builds on the
	// volume has any of them. Each name stays with the volume for as long as the volume is sealed. The program that
	// makes a stream chooses the name in it.
	IDs [][]byte
}

// Has reports whether a stream with that name is of the volume, or builds on it.
func (i Identity) Has(id []byte) bool {
	return slices.ContainsFunc(i.IDs, func(own []byte) bool { return bytes.Equal(own, id) })
}

// Identifier is a Streamer. Each of its native streams names the volume whose content the stream holds.
type Identifier interface {
	// StreamKind is the kind of the native streams: "btrfs" or "zfs".
	StreamKind() string
	// Identify returns the identity of the content of a view. Returns ErrNotImplemented if no native stream holds it.
	Identify(ctx context.Context, v View) (Identity, error)
}

// StreamKind is Identifier.StreamKind. Returns ErrNotImplemented if the backend is no Identifier.
func StreamKind(backend Backend) (string, error) {
	if i, ok := As[Identifier](backend); ok && i.StreamKind() != "" {
		return i.StreamKind(), nil
	}
	return "", cannot("identify volumes", backend)
}

// Identify is Identifier.Identify. Returns ErrNotImplemented if the backend is no Identifier.
func Identify(ctx context.Context, backend Backend, v View) (Identity, error) {
	if i, ok := As[Identifier](backend); ok {
		return i.Identify(ctx, v)
	}
	return Identity{}, cannot("identify volumes", backend)
}

// Keeper is a Backend that can restore a former state of a volume.
type Keeper interface {
	// Keep notes the content of an unsealed volume at this moment, in use or not. It costs no more than a Clone.
	// Until the Kept is closed, Remove may fail with ErrFailedPrecondition. Returns ErrNotImplemented if this volume
	// cannot be kept.
	Keep(ctx context.Context, name string) (Kept, error)
}

// Keep is Keeper.Keep. Returns ErrNotImplemented if the backend is no Keeper.
func Keep(ctx context.Context, backend Backend, name string) (Kept, error) {
	if k, ok := As[Keeper](backend); ok {
		return k.Keep(ctx, name)
	}
	return nil, cannot("keep", backend)
}

// Kept is a former state of a volume. A crash forgets it.
type Kept interface {
	// Restore gives the volume its former content and limit, in one step, so that they survive a power cut. The
	// volume may have no Parent afterwards, and comparing it then takes a walk of both trees. Returns
	// ErrFailedPrecondition if the volume is in use, unchanged then, and ErrNotFound if it was removed.
	Restore(ctx context.Context) error
	// Close forgets the former state.
	Close() error
}

// RootStyler is a Backend whose volumes can have shared roots.
type RootStyler interface {
	// SetRootStyle gives a volume that nobody uses a root style. Its tree stays the same. A crash leaves the volume in
	// either style. Others must not mount the volume by a MountSpec that they got before.
	//
	// A volume gets SharedRoot over its Parent, or over the volume that its Parent shares. Returns ErrFailedPrecondition
	// if the volume is sealed or in use, has no sealed Parent, or has changes that an overlay cannot show. Returns
	// ErrNotImplemented if the filesystem does not list the changes.
	SetRootStyle(ctx context.Context, name string, style RootStyle) error
	// SealAsIs is Sealer.Seal for a volume that is to keep its root style, because only one volume is cloned from it. Seal
	// gives it SnapshotRoot. Shared clones of a sealed volume of SharedRoot share the same volume.
	SealAsIs(ctx context.Context, name string) error
}

// SealAsIs is RootStyler.SealAsIs, or Seal if the backend has no root styles.
func SealAsIs(ctx context.Context, backend Backend, name string) error {
	if r, ok := As[RootStyler](backend); ok {
		return r.SealAsIs(ctx, name)
	}
	return Seal(ctx, backend, name)
}

// SetRootStyle is RootStyler.SetRootStyle. Returns ErrNotImplemented if the backend is no RootStyler.
func SetRootStyle(ctx context.Context, backend Backend, name string, style RootStyle) error {
	if r, ok := As[RootStyler](backend); ok {
		return r.SetRootStyle(ctx, name, style)
	}
	return cannot("set the root style", backend)
}

// Sharer is a Backend with volumes of SharedRoot.
type Sharer interface {
	// Sharers lists the volumes whose roots are shared over a volume, by the name of that volume. A volume is not
	// removed before those that share it.
	Sharers(ctx context.Context) (map[string][]string, error)
}

// Sharers is Sharer.Sharers. It returns nil if the backend is no Sharer.
func Sharers(ctx context.Context, backend Backend) (map[string][]string, error) {
	if s, ok := As[Sharer](backend); ok {
		return s.Sharers(ctx)
	}
	return nil, nil
}

// Scratcher is a Backend that can hold a temporary tree, which is no volume.
type Scratcher interface {
	// Scratch makes an empty tree on the Backend's filesystem, which fill writes. The result is that tree, read-only. Its
	// Close destroys it, as do Close of the Backend and, after a crash, the next start. If fill fails, nothing is left.
	Scratch(ctx context.Context, fill func(dir string) error) (View, error)
}

// Scratch is Scratcher.Scratch. Returns ErrNotImplemented if the backend is no Scratcher.
func Scratch(ctx context.Context, backend Backend, fill func(dir string) error) (View, error) {
	if s, ok := As[Scratcher](backend); ok {
		return s.Scratch(ctx, fill)
	}
	return nil, cannot("make a scratch tree", backend)
}

// Adopter is a Backend that can make a volume from a volume of another program, without copying data.
type Adopter interface {
	// Adopt makes name a writable copy of a foreign volume as it is now, and parent its Parent, "" for none. parent is
	// sealed as by Clone, and was itself adopted from an ancestor of the foreign volume, or cloned from such a volume.
	// Comparing name with it stays native. The foreign volume stays as it is. It may be removed afterwards, on a Settler
	// after Settle.
	//
	// source is the absolute path of a subvolume's root on btrfs, and the name of a dataset on ZFS. Returns
	// ErrNotImplemented if it is not a volume of this filesystem, has volumes nested in it, or has no ancestor in
	// common with parent. Returns ErrNotImplemented too, if the copy could not be settled. Returns ErrInvalidArgument
	// if it is a volume of this Backend.
	Adopt(ctx context.Context, name, parent, source string, opts VolumeOptions) error
	// CheckAdopt returns the error that Adopt would return because of source, or of source and its parent. It changes nothing.
	// The parent may be missing: planned then is the foreign volume that it will be adopted from, and parent is "".
	CheckAdopt(ctx context.Context, parent, source, planned string) error
}

// CheckAdopt is Adopter.CheckAdopt. Returns ErrNotImplemented if the backend is no Adopter.
func CheckAdopt(ctx context.Context, backend Backend, parent, source, planned string) error {
	if a, ok := As[Adopter](backend); ok {
		return a.CheckAdopt(ctx, parent, source, planned)
	}
	return cannot("adopt", backend)
}

// Adopt is Adopter.Adopt. Returns ErrNotImplemented if the backend is no Adopter.
func Adopt(ctx context.Context, backend Backend, name, parent, source string, opts VolumeOptions) error {
	if a, ok := As[Adopter](backend); ok {
		return a.Adopt(ctx, name, parent, source, opts)
	}
	return cannot("adopt", backend)
}

// Settler is an Adopter whose adopted volumes keep their foreign volumes from being removed until they are settled.
type Settler interface {
	// Settle makes an adopted volume independent of its foreign volume, which depends on it from then on, and is to be
	// removed. The parent of the volume is settled first. Its content and its users do not matter, and stay. A volume that
	// was settled or not adopted stays as it is, and so do all other volumes. Returns ErrFailedPrecondition if others have
	// made snapshots of the foreign volume that would become part of the volume.
	Settle(ctx context.Context, name string) error
	// CheckSettle returns an error that Settle would return if the caller settled all of these volumes, as far as the
	// error can be known before. It changes nothing. Their parents need not be settled. Returns unix.EDQUOT or
	// unix.ENOSPC if all of them together would have no room.
	CheckSettle(ctx context.Context, names ...string) error
}

// CheckSettle is Settler.CheckSettle. Returns nil if the backend is no Settler.
func CheckSettle(ctx context.Context, backend Backend, names ...string) error {
	if s, ok := As[Settler](backend); ok {
		return s.CheckSettle(ctx, names...)
	}
	return nil
}

// Settle is Settler.Settle. It does nothing if the backend is no Settler.
func Settle(ctx context.Context, backend Backend, name string) error {
	if s, ok := As[Settler](backend); ok {
		return s.Settle(ctx, name)
	}
	return nil
}

// Retainer is a Backend whose filesystem keeps the data of a removed volume as long as clones of the volume exist.
type Retainer interface {
	// Retained counts the removed volumes whose data is still there.
	Retained(ctx context.Context) (Retained, error)
}

// Retained are removed volumes whose data is still there, because others were cloned from them.
type Retained struct {
	Volumes int
	// Bytes is the space that becomes free with the last clones. The clones still need a part of that data.
	Bytes uint64
}

// Leaver is a Backend that stops waiting for a call of the kernel that does not end.
type Leaver interface {
	// Left is the number of calls for which nobody waits any more, and which have not ended. Left asks the kernel
	// nothing.
	Left() int
}
