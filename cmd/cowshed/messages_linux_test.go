package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/internal/faulttest"
)

// TestMessages has commands fail: each message says each thing once.
func TestMessages(t *testing.T) {
	a := newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "web", "--parent", "base", "--read-write")
	a.ok(t, "mount", "web")
	t.Cleanup(func() { a.ok(t, "unmount", "web") })
	tar := filepath.Join(t.TempDir(), "no.tar")
	write(t, tar, strings.Repeat("x", 1024))
	for _, c := range []struct {
		code int
		args string
	}{
		{exitExists, "create base"},
		{exitNotFound, "create new --parent absent"},
		{exitUsage, "create no/name"},
		{exitUsage, "create new --size -1"},
		{exitPrecondition, "rm web"},
		{exitPrecondition, "rm base"},
		{exitNotFound, "rm absent"},
		{exitNotFound, "mount absent"},
		{exitNotFound, "mount base /no/such/place"},
		{exitNotFound, "unmount absent"},
		{exitNotFound, "changes absent"},
		{exitNotFound, "changes web absent"},
		{exitNotFound, "diff absent"},
		{exitPrecondition, "apply base " + tar},
		{exitUsage, "limit web nothing"},
		{exitNotFound, "limit absent 1G"},
		{exitNotFound, "usage absent"},
		{exitNotFound, "rmi absent"},
		{exitNotFound, "export absent oci:" + t.TempDir() + "/out"},
		{exitNotFound, "import oci:/no/such/place"},
		{exitFailure, "import docker-archive:" + tar},
		{exitUnsupported, "ls --driver overlay"},
		{exitUsage, "ls --storage-opt btrfs.x=y"},
		{exitUsage, "migrate run"},
		{exitUsage, "migrate run --from " + t.TempDir() + " --to nowhere"},
		{exitNotFound, "migrate run --from /no/such/place --to store"},
	} {
		t.Run(c.args, func(t *testing.T) {
			r := a.run(t, strings.Fields(c.args)...)
			t.Log(r.err)
			assert.Equal(t, c.code, r.code)
			faulttest.SaidOnce(t, r.err)
		})
	}
}
