package cowcommon

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// ErrReadOnly says that a filesystem cannot be written to, so that only reading operations work there. Such an error
// matches errdefs.ErrFailedPrecondition and syscall.EROFS too, by errors.Is.
var ErrReadOnly error = readOnlyError{}

type readOnlyError struct{}

func (readOnlyError) Error() string { return "the filesystem is read-only" }

// Unwrap returns the kinds of error that it is.
func (readOnlyError) Unwrap() []error { return []error{errdefs.ErrFailedPrecondition, syscall.EROFS} }

// AsReadOnly makes ErrReadOnly of the kernel's answer that a filesystem is read-only, and keeps err as the cause. Other
// errors stay as they are.
func AsReadOnly(err error) error {
	if errors.Is(err, syscall.EROFS) && !errors.Is(err, ErrReadOnly) {
		return fault.As(ErrReadOnly, err)
	}
	return err
}

// ReadOnly returns backend for reading alone: each method that changes something returns ErrReadOnly, with the reason
// that why gives.
func ReadOnly(backend Backend, why error) Backend {
	return &readOnlyBackend{Backend: backend, err: fault.New(ErrReadOnly, "%v", why)}
}

type readOnlyBackend struct {
	Backend
	err error
}

// As finds these here and not in the Backend inside: whatever of them changes something is refused.
var _ interface {
	Sealer
	Renamer
	Limiter
	Streamer
	Keeper
	RootStyler
	Scratcher
	Adopter
	Settler
	Forker
	Exchanger
} = (*readOnlyBackend)(nil)

// Unwrap returns the Backend inside, whose other optional interfaces change nothing.
func (b *readOnlyBackend) Unwrap() Backend { return b.Backend }

func (b *readOnlyBackend) refuse(operation, name string) error {
	return fault.Wrap(operation+" volume", name, b.err)
}

func (b *readOnlyBackend) Create(_ context.Context, name string, _ VolumeOptions) error {
	return b.refuse("create", name)
}

func (b *readOnlyBackend) Clone(_ context.Context, name, source string, _ VolumeOptions) error {
	return fault.WrapWith("clone volume", name, fault.From(source), b.err)
}

func (b *readOnlyBackend) Seal(_ context.Context, name string) error { return b.refuse("seal", name) }

func (b *readOnlyBackend) Rename(_ context.Context, name, to string) error {
	return fault.WrapWith("rename volume", name, fault.To(to), b.err)
}

func (b *readOnlyBackend) Remove(_ context.Context, name string) error {
	return b.refuse("remove", name)
}

func (b *readOnlyBackend) Usage(ctx context.Context, name string) (quota.Usage, error) {
	return Usage(ctx, b.Backend, name)
}

func (b *readOnlyBackend) SetLimit(_ context.Context, name string, _ quota.Limit) error {
	return b.refuse("limit", name)
}

func (b *readOnlyBackend) Sync(_ context.Context, name string) error { return b.refuse("sync", name) }

func (b *readOnlyBackend) Send(ctx context.Context, w io.Writer, base, top View) error {
	return Send(ctx, b.Backend, w, base, top)
}

func (b *readOnlyBackend) CheckWhole(ctx context.Context, name string) error {
	return CheckWhole(ctx, b.Backend, name)
}

func (b *readOnlyBackend) Keep(_ context.Context, name string) (Kept, error) {
	return nil, b.refuse("keep", name)
}

func (b *readOnlyBackend) SetRootStyle(_ context.Context, name string, _ RootStyle) error {
	return b.refuse("set root style of", name)
}

func (b *readOnlyBackend) SealAsIs(_ context.Context, name string) error {
	return b.refuse("seal", name)
}

func (b *readOnlyBackend) Receive(_ context.Context, name, _ string, _ io.Reader) error {
	return b.refuse("receive", name)
}

func (b *readOnlyBackend) Scratch(context.Context, func(string) error) (View, error) {
	return nil, fault.Wrap("make scratch tree", "", b.err)
}

func (b *readOnlyBackend) Settle(_ context.Context, name string) error {
	return b.refuse("settle", name)
}

func (b *readOnlyBackend) CheckSettle(_ context.Context, names ...string) error {
	return b.refuse("settle", strings.Join(names, ", "))
}

func (b *readOnlyBackend) Adopt(_ context.Context, name, _, source string, _ VolumeOptions) error {
	return fault.WrapWith("adopt volume", name, fault.From(source), b.err)
}

func (b *readOnlyBackend) CheckAdopt(_ context.Context, _, source, _ string) error {
	return fault.Wrap("check adopting of volume", source, b.err)
}

func (b *readOnlyBackend) Fork(_ context.Context, source, moment string, _ []string, _ VolumeOptions) error {
	return fault.WrapWith("fork volume", moment, fault.From(source), b.err)
}

func (b *readOnlyBackend) Exchange(_ context.Context, name, _ string) error {
	return b.refuse("exchange", name)
}
