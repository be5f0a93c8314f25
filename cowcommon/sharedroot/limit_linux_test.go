package sharedroot

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestFoldAtALimit folds a volume that has used up its limit. It fails or not, and completes without the limit.
func TestFoldAtALimit(t *testing.T) {
	for name, quota := range map[string]testfs.BtrfsOption{"simple": testfs.WithSimpleQuota(), "classic": testfs.WithClassicQuota()} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t, testfs.Btrfs(t, quota)+"/home")
			h.create("lower")
			for i := range 2000 {
				require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/%d", h.path("lower"), i/100), 0o755))
				require.NoError(t, os.WriteFile(fmt.Sprintf("%s/%d/%d", h.path("lower"), i/100, i), nil, 0o644))
			}
			h.seal("lower")
			h.prepare("v", "lower")
			view, unmount := h.mount("v", "lower")
			for i := range 2000 {
				require.NoError(t, os.Chmod(fmt.Sprintf("%s/%d/%d", view, i/100, i), 0o600))
			}
			id, err := btrfsctl.Info(int(h.open("v").Fd()))
			require.NoError(t, err)
			limit := func(limit *btrfsctl.QgroupLimit) {
				t.Helper()
				require.NoError(t, btrfsctl.LimitQgroup(int(h.open("v").Fd()), id.ID, *limit))
			}
			limit(btrfsctl.NewLimit(8<<20, 0))
			for i := 0; err == nil; i++ {
				err = os.WriteFile(fmt.Sprintf("%s/data-%d", view, i), make([]byte, 64<<10), 0o600)
			}
			require.True(t, fault.IsFull(err), "%v", err)
			limit(btrfsctl.NewLimit(btrfsctl.ClearLimit, 0)) // the kernel may refuse an overlay's reads at the limit too
			want, err := treecmp.Read(view, merged)
			require.NoError(t, err)
			limit(btrfsctl.NewLimit(8<<20, 0))
			unmount()
			err = fold(t.Context(), h.open("v"), nil)
			t.Log(err)
			if err != nil {
				require.True(t, fault.IsFull(err), "%v", err)
				limit(btrfsctl.NewLimit(btrfsctl.ClearLimit, 0))
				h.fold("v")
			}
			got, err := treecmp.Read(h.path("v"), merged)
			require.NoError(t, err)
			require.Empty(t, want.Diff(got, merged))
		})
	}
}
