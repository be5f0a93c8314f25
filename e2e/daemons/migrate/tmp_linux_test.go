package migrate

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

func TestTmpOld(t *testing.T) {
	for _, driver := range strings.Fields(os.Getenv("TMPDRV")) {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			b := time.Now()
			s := makeScenario(t, ctx, h, driver, driver == "btrfs")
			t.Logf("made in %s", time.Since(b))
			b = time.Now()
			requireOld(t, ctx, s)
			t.Logf("again in %s", time.Since(b))
			t.Logf("%d images", len(s.before.images))
			for _, c := range s.before.containers {
				t.Logf("%s %v", c.Name, c.Changes)
			}
		})
	}
}
