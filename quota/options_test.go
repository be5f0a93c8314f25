package quota

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNames(t *testing.T) {
	for _, s := range []Scope{ScopeLayer, ScopeTotal} {
		got, err := ParseScope(s.String())
		require.NoError(t, err)
		assert.Equal(t, s, got)
	}
	for _, p := range []Policy{PolicyAuto, PolicySimple, PolicyClassic, PolicyOff} {
		got, err := ParsePolicy(p.String())
		require.NoError(t, err)
		assert.Equal(t, p, got)
	}
	upper, err := ParseScope("TOTAL")
	require.NoError(t, err)
	assert.Equal(t, ScopeTotal, upper)

	_, err = ParseScope("image")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.ErrorContains(t, err, `"image": must be layer`)
	_, err = ParsePolicy("on")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.ErrorContains(t, err, `"on": must be auto, simple, classic or off`)

	assert.Equal(t, []string{"off", "classic", "simple", "Mode(9)"},
		[]string{Off.String(), Classic.String(), Simple.String(), Mode(9).String()})
	assert.Equal(t, "Scope(9)", Scope(9).String())
	assert.Equal(t, "Policy(9)", Policy(9).String())
	assert.Equal(t, []string{"none", "1GiB", "1GiB total"}, []string{
		Limit{}.String(), Limit{Bytes: units.GiB}.String(), Limit{Bytes: units.GiB, Scope: ScopeTotal}.String(),
	})
}

func TestParseOptions(t *testing.T) {
	for name, c := range map[string]struct {
		driver string
		opts   []string
		want   Options
	}{
		"none": {driver: "btrfs"},
		"btrfs": {
			driver: "btrfs",
			opts:   []string{"btrfs.size=10G", "btrfs.min_space=1G", "btrfs.quota=classic", "btrfs.quota_scope=total"},
			want:   Options{Size: 10 * units.GiB, MinSpace: units.GiB, Policy: PolicyClassic, Scope: ScopeTotal},
		},
		"zfs": {
			driver: "zfs",
			opts:   []string{"zfs.fsname=tank/a=b", "zfs.size=1g", "zfs.quota_scope=total"},
			want:   Options{FSName: "tank/a=b", Size: units.GiB, Scope: ScopeTotal},
		},
		"case and space":         {driver: "btrfs", opts: []string{" BTRFS.Size = 1G "}, want: Options{Size: units.GiB}},
		"the last counts":        {driver: "btrfs", opts: []string{"btrfs.size=1G", "btrfs.size=2G"}, want: Options{Size: 2 * units.GiB}},
		"least size is no limit": {driver: "btrfs", opts: []string{"btrfs.min_space=2G"}, want: Options{MinSpace: 2 * units.GiB}},
		"off":                    {driver: "btrfs", opts: []string{"btrfs.quota=off"}, want: Options{Policy: PolicyOff}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseOptions(c.driver, c.opts)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestParseOptionsErrors(t *testing.T) {
	for name, c := range map[string]struct {
		driver string
		opts   []string
		want   string
	}{
		"no value":          {"btrfs", []string{"btrfs.size"}, `option "btrfs.size": must have the form key=value`},
		"empty":             {"btrfs", []string{""}, `option ""`},
		"unknown":           {"btrfs", []string{"btrfs.sise=1G"}, `unknown option "btrfs.sise": driver btrfs has btrfs.min_space, btrfs.quota, btrfs.quota_scope, btrfs.read_only, btrfs.size`},
		"no prefix":         {"btrfs", []string{"size=1G"}, `unknown option "size"`},
		"only prefix":       {"btrfs", []string{"btrfs.=1G"}, `unknown option "btrfs."`},
		"of another driver": {"btrfs", []string{"zfs.size=1G"}, `unknown option "zfs.size"`},
		"not of zfs":        {"zfs", []string{"zfs.quota=auto"}, "driver zfs has zfs.fsname, zfs.quota_scope, zfs.read_only, zfs.size"},
		"size":              {"btrfs", []string{"btrfs.size=0"}, `option btrfs.size: invalid argument: size "0": must be`},
		"min_space":         {"btrfs", []string{"btrfs.min_space=x"}, `option btrfs.min_space: invalid argument: size "x"`},
		"scope":             {"btrfs", []string{"btrfs.quota_scope=x"}, `option btrfs.quota_scope: invalid argument: quota scope "x"`},
		"quota":             {"btrfs", []string{"btrfs.quota=x"}, `option btrfs.quota: invalid argument: quota mode "x"`},
		"fsname":            {"zfs", []string{"zfs.fsname=/tank"}, `dataset "/tank"`},
		"empty fsname":      {"zfs", []string{"zfs.fsname="}, `dataset ""`},
		"default below min": {"btrfs", []string{"btrfs.size=1G", "btrfs.min_space=2G"}, "size 1GiB is below btrfs.min_space, 2GiB"},
		"simple and total":  {"btrfs", []string{"btrfs.quota=simple", "btrfs.quota_scope=total"}, "exclude each other"},
		"off and size":      {"btrfs", []string{"btrfs.quota=off", "btrfs.size=1G"}, "exclude each other"},
		"no such driver":    {"ext4", nil, `driver "ext4" has no options`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseOptions(c.driver, c.opts)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			assert.ErrorContains(t, err, c.want)
		})
	}
}

func TestLayerLimit(t *testing.T) {
	o := Options{Size: 10 * units.GiB, MinSpace: units.GiB, Scope: ScopeTotal}
	for name, c := range map[string]struct {
		opt       map[string]string
		readWrite bool
		want      Limit
	}{
		"none":       {},
		"default":    {readWrite: true, want: Limit{10 * units.GiB, ScopeTotal}},
		"given":      {opt: map[string]string{"size": "2G"}, readWrite: true, want: Limit{2 * units.GiB, ScopeTotal}},
		"image too":  {opt: map[string]string{"SIZE": "2G"}, want: Limit{2 * units.GiB, ScopeTotal}},
		"least size": {opt: map[string]string{"size": "1G"}, want: Limit{units.GiB, ScopeTotal}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := o.LayerLimit(c.opt, c.readWrite)
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
	none, err := Options{Scope: ScopeTotal}.LayerLimit(nil, true)
	require.NoError(t, err)
	assert.Zero(t, none)

	for name, c := range map[string]struct {
		opt  map[string]string
		want string
	}{
		"unknown":   {map[string]string{"size": "2G", "inodes": "5"}, `unknown layer option "inodes": there is only size`},
		"zero":      {map[string]string{"size": "0"}, `size "0": must be`},
		"empty":     {map[string]string{"size": ""}, `size "": must not be empty`},
		"too small": {map[string]string{"size": "1023m"}, "size 1023MiB is below btrfs.min_space, 1GiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := o.LayerLimit(c.opt, true)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			assert.ErrorContains(t, err, c.want)
		})
	}
}

// FuzzParseOptions checks that no option is accepted that does not name a key of its driver.
func FuzzParseOptions(f *testing.F) {
	for _, s := range []string{"btrfs.size=10G", "zfs.fsname=tank/x", "=", "btrfs.=", "BTRFS.QUOTA = off", "btrfs.size=1=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, opt string) {
		for driver := range optionSetters {
			if _, err := ParseOptions(driver, []string{opt}); err != nil {
				require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
				continue
			}
			require.Contains(t, opt, "=")
		}
	})
}
