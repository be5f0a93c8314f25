package daemon

import (
	"bytes"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	_ "github.com/cowshed/cowshed/btrfs" // the drivers that configurations name
	_ "github.com/cowshed/cowshed/zfs"
)

const sampleFile = "../../packaging/cowshed.toml"

// TestSample: the sample has the defaults, and names every key.
func TestSample(t *testing.T) {
	sample, err := ReadConfig(sampleFile)
	require.NoError(t, err)
	want := Default()
	want.StorageOptions, want.AlertCommand, want.APINamespaces = []string{}, []string{}, []APINamespace{}
	assert.Equal(t, want, sample)
	require.NoError(t, sample.Validate())

	text, err := os.ReadFile(sampleFile)
	require.NoError(t, err)
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Config]()) {
		key := field.Tag.Get("toml")
		assert.Regexp(t, `(?m)^`+key+` = `, string(text), "key %s", key)
	}
}

func writeConfig(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.toml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func TestReadConfig(t *testing.T) {
	c, err := ReadConfig(writeConfig(t, `
root = "/srv"
driver = "btrfs"
storage_options = ["btrfs.quota=classic"]
default_limit = "10G"
build_limit = "50G"
root_style = "shared"
api_namespaces = [{name = "ci", users = ["jenkins"], readable = ["src"], max_layers = 100, max_bytes = "1G", max_lifetime = "24h"}]
docker_plugin = "cows"
stop_timeout = "1m30s"
`))
	require.NoError(t, err)
	require.NoError(t, c.Validate())
	assert.Equal(t, "/srv", c.Root)
	assert.Equal(t, "50G", c.BuildLimit)
	assert.Equal(t, Duration{90 * time.Second}, c.StopTimeout)
	assert.Equal(t, []APINamespace{{
		Name: "ci", Users: []string{"jenkins"}, Readable: []string{"src"}, MaxLayers: 100, MaxBytes: "1G", MaxLifetime: Duration{24 * time.Hour},
	}}, c.APINamespaces)
	assert.Equal(t, Default().Address, c.Address, "what is not named has its default")
	assert.Equal(t, []string{"btrfs.quota=classic", "btrfs.quota_scope=layer", "btrfs.root_style=shared", "btrfs.size=10G"}, c.driverOptions("btrfs"))
	assert.Equal(t, []string{"zfs.quota_scope=layer", "zfs.root_style=shared", "zfs.size=10G"}, c.driverOptions("zfs"))
	socket, err := c.dockerSocket()
	require.NoError(t, err)
	assert.Equal(t, "/run/docker/plugins/cows.sock", socket)

	_, err = ReadConfig(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestWrongFile(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"unknown key":     {"root = '/srv'\n\nroots = '/srv'\n", `line 3: unknown key "roots"`},
		"unknown table":   {"[containerd]\naddress = '/x'\n", `unknown key "containerd`},
		"two unknown":     {"a = 1\nb = 2\n", "line 2: unknown key \"b\""},
		"wrong type":      {"\nroot = 5\n", "line 2"},
		"twice":           {"root = '/a'\nroot = '/b'\n", "line 2"},
		"no TOML":         {"root /srv\n", "line 1"},
		"no duration":     {"stop_timeout = 'soon'\n", "soon"},
		"number for time": {"stop_timeout = 5\n", "missing unit"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadConfig(writeConfig(t, c.text))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			assert.ErrorContains(t, err, c.says)
		})
	}
}

func TestWrongValues(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"relative root":    {func(c *Config) { c.Root = "srv" }, "root"},
		"no root":          {func(c *Config) { c.Root = "" }, "root"},
		"relative address": {func(c *Config) { c.Address = "x.sock" }, "address"},
		"containerd":       {func(c *Config) { c.ContainerdAddress = "" }, "containerd_address"},
		"api":              {func(c *Config) { c.API = "x.sock" }, "api"},
		"api token":        {func(c *Config) { c.APITokenFile = "token" }, "api_token_file"},
		"namespace name":   {func(c *Config) { c.APINamespaces = []APINamespace{{Name: "a.b", Users: []string{"1"}}} }, "a.b"},
		"no members":       {func(c *Config) { c.APINamespaces = []APINamespace{{Name: "a"}} }, "neither users nor groups"},
		"same name":        {func(c *Config) { c.APINamespaces = slices.Repeat([]APINamespace{{Name: "a", Users: []string{"1"}}}, 2) }, "twice"},
		"namespace bytes":  {func(c *Config) { c.APINamespaces = []APINamespace{{Name: "a", Users: []string{"1"}, MaxBytes: "much"}} }, "much"},
		"namespace layers": {func(c *Config) { c.APINamespaces = []APINamespace{{Name: "a", Users: []string{"1"}, MaxLayers: -1}} }, "max_layers"},
		"readable": {func(c *Config) {
			c.APINamespaces = []APINamespace{{Name: "a", Users: []string{"1"}, Readable: []string{"b@c"}}}
		}, "readable"},
		"docker home":        {func(c *Config) { c.DockerHome = "x" }, "docker_home"},
		"docker socket":      {func(c *Config) { c.DockerSocket = "x" }, "docker_socket"},
		"docker name":        {func(c *Config) { c.DockerPlugin = "a/b" }, "docker_plugin"},
		"docker's own":       {func(c *Config) { c.DockerPlugin = "overlay2" }, "overlay2"},
		"limit":              {func(c *Config) { c.DefaultLimit = "many" }, "default_limit"},
		"no limit":           {func(c *Config) { c.DefaultLimit = "0" }, "default_limit"},
		"build limit":        {func(c *Config) { c.BuildLimit = "-1G" }, "build_limit"},
		"no build limit":     {func(c *Config) { c.BuildLimit = "0" }, "build_limit"},
		"builds, no quota":   {func(c *Config) { c.StorageOptions = []string{"btrfs.quota=off"}; c.BuildLimit = "1G" }, `build_limit = "1G"`},
		"builds, min_space":  {func(c *Config) { c.StorageOptions = []string{"btrfs.min_space=2G"}; c.BuildLimit = "1G" }, `build_limit = "1G"`},
		"scope":              {func(c *Config) { c.LimitScope = "all" }, "limit_scope"},
		"root style":         {func(c *Config) { c.RootStyle = "overlay" }, `root_style: invalid argument: root style "overlay"`},
		"no root style":      {func(c *Config) { c.RootStyle = "" }, "root_style"},
		"driver":             {func(c *Config) { c.Driver = "overlay2" }, "driver"},
		"option":             {func(c *Config) { c.StorageOptions = []string{"btrfs.quoat=off"} }, "storage_options"},
		"option of no one":   {func(c *Config) { c.StorageOptions = []string{"brtfs.quota=off"} }, "storage_options"},
		"option, no value":   {func(c *Config) { c.StorageOptions = []string{"btrfs.quota"} }, "storage_options"},
		"size as option":     {func(c *Config) { c.StorageOptions = []string{"btrfs.size=1G"} }, "default_limit"},
		"scope as option":    {func(c *Config) { c.StorageOptions = []string{"btrfs.quota_scope=total"} }, "limit_scope"},
		"style as option":    {func(c *Config) { c.StorageOptions = []string{"btrfs.root_style=shared"} }, "say root_style"},
		"dataset for any":    {func(c *Config) { c.StorageOptions = []string{"zfs.fsname=a/b"} }, "needs driver"},
		"limit and no quota": {func(c *Config) { c.StorageOptions = []string{"btrfs.quota=off"}; c.DefaultLimit = "1G" }, "exclude"},
		"simple and total":   {func(c *Config) { c.StorageOptions = []string{"btrfs.quota=simple"}; c.LimitScope = "total" }, "exclude"},
		"alert at 0":         {func(c *Config) { c.AlertPercents = []int{0, 95} }, "alert_percents"},
		"alerts descend":     {func(c *Config) { c.AlertPercents = []int{95, 80} }, "ascending"},
		"alert above 100":    {func(c *Config) { c.AlertPercents = []int{101} }, "alert_percents"},
		"too many alerts":    {func(c *Config) { c.AlertPercents = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11} }, "more than 10"},
		"relative command":   {func(c *Config) { c.AlertCommand = []string{"mail", "root"} }, "alert_command"},
		"webhook":            {func(c *Config) { c.AlertWebhook = "unix:///secret" }, "alert_webhook: invalid argument: must be http://HOST"},
		"container metrics":  {func(c *Config) { c.ContainerMetrics = -1 }, "container_metrics"},
		"metrics":            {func(c *Config) { c.Metrics = "9417" }, "metrics"},
		"metrics socket":     {func(c *Config) { c.Metrics = "unix://x" }, "metrics"},
		"level":              {func(c *Config) { c.LogLevel = "loud" }, "log_level"},
		"format":             {func(c *Config) { c.LogFormat = "xml" }, "log_format"},
		"timeout":            {func(c *Config) { c.StopTimeout.Duration = 0 }, "stop_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			config := Default()
			c.change(&config)
			err := config.Validate()
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			assert.ErrorContains(t, err, c.says)
		})
	}
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"text": "level=WARN msg=well", "json": `"level":"WARN","msg":"well"`} {
		var out bytes.Buffer
		c := Default()
		c.LogFormat, c.LogLevel = format, "warn"
		handler, err := c.Handler(&out)
		require.NoError(t, err)
		slog.New(handler).Info("not")
		slog.New(handler).Warn("well")
		assert.Contains(t, out.String(), want)
		assert.NotContains(t, out.String(), "not")
	}
}
