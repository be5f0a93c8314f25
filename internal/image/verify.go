package image

import (
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// checkDigest reports whether d is a well-formed SHA-256 digest, the only algorithm that layers' chain IDs
// and registries in use have.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", clip(string(d)), err, ErrMalformed)
	}
	if d.Algorithm() != digest.SHA256 {
		return fault.New(errdefs.ErrNotImplemented, "digest %s is not SHA-256", d)
	}
	return nil
}

// clip shortens an image's own texts so that they can be part of a message.
func clip(s string) string {
	const limit = 120
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// mismatch is the error for content whose digest is another.
func mismatch(what string, got, want digest.Digest) error {
	return fault.New(errdefs.ErrDataLoss, "%s has digest %s, not %s: the image is damaged or was tampered with", what, got, want)
}

// verifier passes on the bytes that it reads. At their end it returns an error instead of io.EOF unless their size
// and digest are right.
type verifier struct {
	r    io.Reader
	what string
	want digest.Digest // "": not known
	size int64         // bytes; negative: not known

	hash hash.Hash
	n    int64
}

func newVerifier(r io.Reader, what string, want digest.Digest, size int64) *verifier {
	return &verifier{r: r, what: what, want: want, size: size, hash: digest.SHA256.Hash()}
}

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.n += int64(n)
	_, _ = v.hash.Write(p[:n]) // never fails
	if v.size >= 0 && v.n > v.size {
		return 0, fault.New(errdefs.ErrDataLoss, "%s has more than the %d bytes that it should have", v.what, v.size)
	}
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if v.size >= 0 && v.n < v.size {
		return n, fault.New(errdefs.ErrDataLoss, "%s ends after %d of %d bytes: %w", v.what, v.n, v.size, io.ErrUnexpectedEOF)
	}
	if got := v.digest(); v.want != "" && got != v.want {
		return n, mismatch(v.what, got, v.want)
	}
	return n, err
}

// digest is that of the bytes read so far.
func (v *verifier) digest() digest.Digest { return digest.NewDigest(digest.SHA256, v.hash) }
