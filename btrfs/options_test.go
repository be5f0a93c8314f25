package btrfs

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

func TestParseOptions(t *testing.T) {
	minimum := func(bytes uint64) quota.Minimum { return quota.Minimum{Bytes: bytes, Option: "btrfs.min_space"} }
	for name, c := range map[string]struct {
		opts   []string
		want   quota.Options
		style  cowcommon.RootStyle
		policy quota.Policy
	}{
		"none": {},
		"all": {
			opts:   []string{"btrfs.size=10G", "btrfs.min_space=1G", "btrfs.quota=classic", "btrfs.quota_scope=total"},
			want:   quota.Options{Size: 10 * units.GiB, MinSpace: minimum(units.GiB), Scope: quota.ScopeTotal},
			policy: quota.PolicyClassic,
		},
		"case and space":         {opts: []string{" BTRFS.Size = 1G "}, want: quota.Options{Size: units.GiB}},
		"the last counts":        {opts: []string{"btrfs.size=1G", "btrfs.size=2G"}, want: quota.Options{Size: 2 * units.GiB}},
		"least size is no limit": {opts: []string{"btrfs.min_space=2G"}, want: quota.Options{MinSpace: minimum(2 * units.GiB)}},
		"off":                    {opts: []string{"btrfs.quota=off"}, policy: quota.PolicyOff},
		"shared roots":           {opts: []string{"btrfs.root_style=shared"}, style: cowcommon.SharedRoot},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseOptions(c.opts)
			require.NoError(t, err)
			assert.Equal(t, driverOptions{cowcommon.DriverOptions{Options: c.want, RootStyle: c.style}, c.policy}, got)
		})
	}
}

func TestParseOptionsErrors(t *testing.T) {
	for name, c := range map[string]struct {
		opts []string
		want string
	}{
		"no value":          {[]string{"btrfs.size"}, `option "btrfs.size": must have the form key=value`},
		"empty":             {[]string{""}, `option ""`},
		"unknown":           {[]string{"btrfs.sise=1G"}, `unknown option "btrfs.sise": driver btrfs has btrfs.min_space, btrfs.quota, btrfs.quota_scope, btrfs.read_only, btrfs.root_style, btrfs.size`},
		"no prefix":         {[]string{"size=1G"}, `unknown option "size"`},
		"only prefix":       {[]string{"btrfs.=1G"}, `unknown option "btrfs."`},
		"of another driver": {[]string{"zfs.size=1G"}, `unknown option "zfs.size"`},
		"size":              {[]string{"btrfs.size=0"}, `option btrfs.size: invalid argument: size "0": must be`},
		"min_space":         {[]string{"btrfs.min_space=x"}, `option btrfs.min_space: invalid argument: size "x"`},
		"scope":             {[]string{"btrfs.quota_scope=x"}, `option btrfs.quota_scope: invalid argument: quota scope "x"`},
		"root style":        {[]string{"btrfs.root_style=x"}, `option btrfs.root_style: invalid argument: root style "x"`},
		"quota":             {[]string{"btrfs.quota=x"}, `option btrfs.quota: invalid argument: quota mode "x"`},
		"default below min": {[]string{"btrfs.size=1G", "btrfs.min_space=2G"}, "size 1GiB is below btrfs.min_space, 2GiB"},
		"simple and total":  {[]string{"btrfs.quota=simple", "btrfs.quota_scope=total"}, "exclude each other"},
		"off and size":      {[]string{"btrfs.quota=off", "btrfs.size=1G"}, "exclude each other"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(c.opts)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			assert.ErrorContains(t, err, c.want)
		})
	}
}
