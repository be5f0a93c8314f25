package daemon

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDockerRootStyle: the plugin's containers have the configured root style. A layer may name another, which does not
// take its limit away.
func TestDockerRootStyle(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t, testfs.WithSimpleQuota())
	c.DockerPlugin, c.BuildLimit, c.RootStyle = "cowshed-test", "8M", "shared"
	r := start(t, c)
	ok := func(method, body string) string {
		answer, status := docker(t, c, method, body)
		require.Equal(t, http.StatusOK, status, "%s: %s", method, answer)
		return answer
	}
	ok("GraphDriver.Init", `{"Home":"`+filepath.Join(filepath.Dir(c.Root), "docker")+`"}`)
	assert.Contains(t, ok("GraphDriver.Status", `{}`), `["Root Style","shared"]`)
	ok("GraphDriver.Create", `{"ID":"image"}`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"container","Parent":"image"}`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"own","Parent":"image","StorageOpt":{"root_style":"snapshot"}}`)
	ok("GraphDriver.Create", `{"ID":"layer","Parent":"image","StorageOpt":{"root_style":"shared"}}`)
	assert.Contains(t, ok("GraphDriver.GetMetadata", `{"ID":"layer"}`), `"Limit":"8388608"`)

	for _, method := range []string{"GraphDriver.Create", "GraphDriver.CreateReadWrite"} {
		answer, status := docker(t, c, method, `{"ID":"bad","Parent":"image","StorageOpt":{"root_style":"overlay"}}`)
		assert.NotEqual(t, http.StatusOK, status)
		assert.Contains(t, answer, `root style \"overlay\"`)
		assert.Contains(t, ok("GraphDriver.Exists", `{"ID":"bad"}`), "false")
	}
	require.NoError(t, r.stop())
}
