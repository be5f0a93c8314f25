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

func TestParse(t *testing.T) {
	var o Options
	require.NoError(t, o.Setters().Parse("cow", []string{" COW.Size = 1G ", "cow.quota_scope=total", "cow.size=2G", "cow.read_only=true"}))
	assert.Equal(t, Options{Size: 2 * units.GiB, Scope: ScopeTotal, ReadOnly: true}, o)
	for opt, want := range map[string]string{
		"cow.min_space=1G":  "driver cow has cow.quota_scope, cow.read_only, cow.size",
		"cow.read_only=why": `option cow.read_only: invalid argument: "why": must be true or false`,
	} {
		err := o.Setters().Parse("cow", []string{opt})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.ErrorContains(t, err, want)
	}
}

func TestLimits(t *testing.T) {
	o := Options{Size: 10 * units.GiB, MinSpace: Minimum{units.GiB, "btrfs.min_space"}, Scope: ScopeTotal}
	assert.Equal(t, Limit{10 * units.GiB, ScopeTotal}, o.DefaultLimit())
	assert.Zero(t, Options{Scope: ScopeTotal}.DefaultLimit())
	for size, want := range map[string]uint64{"2G": 2 * units.GiB, "1G": units.GiB} {
		got, err := o.ParseLimit(size)
		require.NoError(t, err)
		assert.Equal(t, Limit{want, ScopeTotal}, got)
	}
	for size, want := range map[string]string{
		"0":     `size "0": must be`,
		"":      `size "": must not be empty`,
		"1023m": "size 1023MiB is below btrfs.min_space, 1GiB",
	} {
		_, err := o.ParseLimit(size)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.ErrorContains(t, err, want)
	}
}

// FuzzParse checks that no option is accepted that does not name a key of its driver.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"cow.size=10G", "zfs.size=1G", "=", "cow.=", "COW.QUOTA_SCOPE = total", "cow.size=1=2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, opt string) {
		var o Options
		if err := o.Setters().Parse("cow", []string{opt}); err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		require.Contains(t, opt, "=")
	})
}
