package containerdapi

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// Label gives a blob labels that it does not have yet, because it was there before.
func Label(ctx context.Context, store content.Store, blob digest.Digest, labels map[string]string) error {
	info, err := store.Info(ctx, blob)
	if err != nil {
		return err
	}
	var paths []string
	for name, value := range labels {
		if info.Labels[name] != value {
			paths = append(paths, "labels."+name)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	_, err = store.Update(ctx, content.Info{Digest: blob, Labels: labels}, paths...)
	return err
}
