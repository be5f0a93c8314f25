package trees

import (
	"context"
	"io"
	"os"
)

// VerifyTar compares the tree of a new layer with the layer's tar. base is the tree of the layer below, nil for none. All
// is compared but times: an attacker may have added something to the tree that the digest of the tar does not cover.
// VerifyTar reads the tar up to the end mark, or less of it after an error. The caller checks its digest.
//
// Returns errdefs.ErrDataLoss with the first difference.
func VerifyTar(ctx context.Context, got, base *os.File, tar io.Reader) error {
	return verifyTar(ctx, got, base, tar)
}
