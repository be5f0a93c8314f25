package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/stream"
)

func newApplyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "apply NAME [FILE|-]",
		Short: "Unpack a layer tar into a layer",
		Long: `Unpacks a layer tar, plain or compressed with gzip, zstd, bzip2 or xz, into a layer: files are added and replaced, and
those that it marks as deleted are deleted. It is read from FILE or from standard input.

If it fails, the layer is left as far as it was filled.`,
		Example: "  cowshed create copy --parent debian && cowshed diff web | cowshed apply copy",
		Args:    usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.apply(cmd, args) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
}

func (s *store) apply(cmd *cobra.Command, args []string) (err error) {
	v, err := s.Layer(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	user, err := s.UserOf(v)
	if err != nil {
		return err
	}
	if user != "" {
		return failf(errdefs.ErrFailedPrecondition, "layer %s is part of %s and cannot be changed; make one from it with cowshed create --parent",
			layerstore.ShortName(v.Name), user)
	}
	in, size, err := openInput(cmd, args[1:])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()

	bars := s.progress(cmd)
	defer bars.wait()
	task := bars.Start(v.Name, size)
	tar, _, err := layertar.Decompress(stream.CountReads(in, task.Add))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tar.Close()) }()
	written, err := s.Driver.Apply(cmd.Context(), v.Name, tar)
	task.End(outcome(err))
	if err == nil {
		s.Log.Info("applied", "layer", v.Name, "bytes", written)
	}
	return err
}

// openInput opens the file that is named, or standard input, and says how many bytes it has, negative if
// that is not known.
func openInput(cmd *cobra.Command, args []string) (io.ReadCloser, int64, error) {
	if len(args) == 0 || args[0] == "-" {
		return io.NopCloser(standardInput(cmd.Context(), cmd.InOrStdin())), -1, nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, 0, asNotFound(err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	if !info.Mode().IsRegular() {
		return f, -1, nil
	}
	return f, info.Size(), nil
}

// standardInput reads r, but ends with the context. A read that is under way then cannot be stopped: it
// goes on for as long as the process lives.
func standardInput(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, r)
		_ = pw.CloseWithError(err) // never fails
	}()
	context.AfterFunc(ctx, func() { _ = pw.CloseWithError(ctx.Err()) })
	return pr
}

// toStandardOutput calls write with a writer to out, but ends with the context. A write to out that is under way then cannot be
// stopped: it goes on for as long as the process lives.
func toStandardOutput(ctx context.Context, out io.Writer, write func(io.Writer) error) error {
	pr, pw := io.Pipe()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, pr)
		copied <- err
		_ = pr.CloseWithError(err) // never fails
	}()
	defer context.AfterFunc(ctx, func() { _ = pr.CloseWithError(ctx.Err()) })()
	err := write(pw)
	_ = pw.Close() // never fails
	select {
	case copyErr := <-copied:
		return cmp.Or(err, copyErr)
	case <-ctx.Done():
		return cmp.Or(err, ctx.Err())
	}
}

// asNotFound makes errors for files that are not there match errdefs.ErrNotFound.
func asNotFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return failf(errdefs.ErrNotFound, "%w", err)
	}
	return err
}
