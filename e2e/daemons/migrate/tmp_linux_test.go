package migrate

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestTmpPodman(t *testing.T) {
	for _, driver := range strings.Fields(os.Getenv("TMPDRV")) {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			b := time.Now()
			p := newPodman(t, h, driver)
			r := makePodman(t, ctx, p)
			t.Logf("made in %s", time.Since(b))
			t.Logf("%v", r.images)
		})
	}
}
