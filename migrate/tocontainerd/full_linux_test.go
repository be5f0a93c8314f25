package tocontainerd

import (
	"strings"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/fulldisk"
)

// TestFullFilesystem: containerd's own files are on the filesystem too.
func TestFullFilesystem(t *testing.T) {
	h := newHost(t, testfs.WithSize(fulldisk.Size))
	h.newSource(overlays)
	fulldisk.Test(t, fulldisk.Host{
		Mountpoint: h.mnt,
		Migrate:    func(do func(*migrate.Migration) error) error { return do(h.migration(h.target(h.options(Moby)))) },
		Things: func() []string { // their labels and leases are whole with the last of them
			var names []string
			for _, line := range h.state(Moby) {
				if kind, rest, _ := strings.Cut(line, " "); kind != "lease" {
					name, _, _ := strings.Cut(rest, " ")
					names = append(names, kind+" "+name)
				}
			}
			return names
		},
	})
}
