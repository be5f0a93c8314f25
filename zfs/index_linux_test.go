package zfs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestIndexOfOddLists: a look fails if zfs fails, or lists something that the index does not understand. Neither a part
// of the list nor an earlier list counts. The next look reads the list again.
func TestIndexOfOddLists(t *testing.T) {
	for name, odd := range map[string]struct{ script, says string }{
		"garbage":                    {`echo 'internal error: out of memory'`, "1 fields instead of 7"},
		"bytes":                      {`head -c 4096 /dev/urandom`, "fields instead of 7"},
		"an empty line":              {`printf '` + rootLine + `\n'`, "1 fields instead of 7"},
		"a field is missing":         {`printf '` + rootLine + `pool/b\t-\t1\t0\t0\t1\n'`, "6 fields instead of 7"},
		"a field too many":           {`printf '` + rootLine + `pool/b\t-\t1\t0\t0\t1\tlegacy\t-\n'`, "8 fields instead of 7"},
		"no time":                    {`printf '` + rootLine + `pool/b\t-\t-\t0\t0\t1\tlegacy\n'`, "creation"},
		"no size":                    {`printf '` + rootLine + `pool/b\t-\t1\tmuch\t0\t1\tlegacy\n'`, "much"},
		"two sizes":                  {`printf '` + rootLine + `pool/b\t-\t1\t-1\t0\t1\tlegacy\n'`, "-1"},
		"nothing":                    {``, "pool"},
		"without the dataset itself": {`printf 'pool/b\t-\t1\t0\t0\t1\tlegacy\n'`, "pool"},
		"a status without words":     {`exit 3`, "exit status 3"},
		"words and a status":         {`echo "cannot open 'pool': dataset does not exist" >&2; exit 1`, "dataset does not exist"},
		"whole, and a status":        {oneDataset + `exit 1`, "exit status 1"},
		"killed in the middle":       {`printf '` + rootLine + `'; kill -9 $$`, "killed"},
		"a program that is missing":  {`exec /nonexistent/zfs`, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := fakeZFS(t, "if [ ! -e odd ]; then\n"+oneDataset+"exit\nfi\n"+odd.script)
			x := fakeIndex(t, c, dir)
			assertKnown := func() {
				t.Helper()
				d, ok, err := x.get(t.Context(), "a")
				require.NoError(t, err)
				assert.True(t, ok && d.own)
			}
			assertKnown()
			x.invalidate()
			require.NoError(t, os.WriteFile(dir+"/odd", nil, 0o600))
			for range 2 {
				_, _, err := x.get(t.Context(), "a")
				require.ErrorContains(t, err, odd.says)
				_, err = x.all(t.Context())
				require.ErrorContains(t, err, odd.says)
			}
			require.NoError(t, os.Remove(dir+"/odd"))
			assertKnown()
		})
	}
}

const rootLine = `pool\t-\t1\t0\t0\t-\t/pool\n`

// TestIndexOfUnusualLists: warnings of zfs, a slow zfs and long lines do not matter.
func TestIndexOfUnusualLists(t *testing.T) {
	const long = 1 << 20
	for name, script := range map[string]string{
		"words and no status": `echo 'warning: something is deprecated' >&2` + "\n" + oneDataset,
		"many words":          `head -c 1000000 /dev/zero >&2` + "\n" + oneDataset,
		"slow": `printf '` + rootLine + `'; sleep 0.2; printf 'pool/a\t-\t1\t0'; sleep 0.2; printf '\t0\t1\tlegacy'; sleep 0.2; echo
`,
		"no end of the last line": `printf '` + rootLine + `pool/a\t-\t1\t0\t0\t1\tlegacy'`,
		"a long name":             oneDataset + fmt.Sprintf(`printf 'pool/%%s\t-\t1\t0\t0\t1\tlegacy\n' "$(head -c %d /dev/zero | tr '\0' n)"`, long),
		"names of others": oneDataset + `printf 'pool/a/below\t-\t1\t0\t0\t1\tlegacy\npool@layer\t-\t1\t-\t-\t-\t-\npool/..\t-\t1\t0\t0\t1\tlegacy\n'
`,
		"a snapshot of nothing": oneDataset + `printf 'pool/gone@layer\t-\t1\t-\t-\t-\t-\n'`,
	} {
		t.Run(name, func(t *testing.T) {
			c, dir := fakeZFS(t, script)
			x := fakeIndex(t, c, dir)
			all, err := x.all(t.Context())
			require.NoError(t, err)
			assert.Equal(t, dataset{created: time.Unix(1, 0), marked: true, own: true}, all["a"])
			delete(all, "a")
			for name, d := range all {
				assert.False(t, d.own, "%.32q is no layer", name)
				assert.NotContains(t, name, "below")
			}
			if name == "a long name" {
				assert.Contains(t, all, strings.Repeat("n", long))
			}
		})
	}
}

// TestIndexCancelled: a look that is cancelled ends its own zfs, and no other look.
func TestIndexCancelled(t *testing.T) {
	c, dir := fakeZFS(t, `if [ -e started ]; then
`+oneDataset+`exit
fi
printf '`+rootLine+`pool/b'
touch started
exec sleep 100`)
	c.patience = 20 * time.Second
	x := fakeIndex(t, c, dir)
	ctx := cancelledAt(t, dir+"/cancel")
	given := make(chan error)
	go func() {
		_, _, err := x.get(ctx, "a")
		given <- err
	}()
	waitFor(t, dir+"/started")
	others := make(chan error)
	for range 3 {
		go func() {
			_, ok, err := x.get(context.WithoutCancel(ctx), "a")
			if err == nil && !ok {
				err = errdefs.ErrNotFound
			}
			others <- err
		}()
	}
	require.NoError(t, os.WriteFile(dir+"/cancel", nil, 0o600))
	require.ErrorIs(t, <-given, context.Canceled)
	for range 3 {
		require.NoError(t, <-others)
	}
	_, ok, err := x.get(t.Context(), "b")
	require.NoError(t, err)
	assert.False(t, ok)
}
