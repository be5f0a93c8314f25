package main

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestVersionOf(t *testing.T) {
	platform := buildVersion{Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	suffix := runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
	stamped := []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.time", Value: "2026-11-29T15:04:05Z"}, {Key: "vcs.modified", Value: "false"},
	}
	modified := append(stamped[:2:2], debug.BuildSetting{Key: "vcs.modified", Value: "true"})
	for name, test := range map[string]struct {
		info *debug.BuildInfo
		set  string
		want buildVersion
		text string
	}{
		"no record": {&debug.BuildInfo{}, "", buildVersion{Version: "devel"}, "devel (" + suffix},
		"outside of git": {
			&debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "", buildVersion{Version: "devel"}, "devel (" + suffix,
		},
		"outside of git, version set": {
			&debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "1.2.3", buildVersion{Version: "1.2.3"}, "1.2.3 (" + suffix,
		},
		"go install of a version": {
			&debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "", buildVersion{Version: "v1.2.3"}, "v1.2.3 (" + suffix,
		},
		"in git": {
			&debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}, Settings: stamped}, "",
			buildVersion{Version: "v1.2.3", Commit: "0123456789abcdef", Date: "2026-11-29T15:04:05Z"},
			"v1.2.3 (commit 0123456789abcdef, 2026-11-29T15:04:05Z, " + suffix,
		},
		"in git, changed": {
			&debug.BuildInfo{Main: debug.Module{Version: "v1.2.3+dirty"}, Settings: modified}, "",
			buildVersion{Version: "v1.2.3+dirty", Commit: "0123456789abcdef", Date: "2026-11-29T15:04:05Z", Modified: true},
			"v1.2.3+dirty (commit 0123456789abcdef with changes, 2026-11-29T15:04:05Z, " + suffix,
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.Go, test.want.OS, test.want.Arch = platform.Go, platform.OS, platform.Arch
			got := versionOf(test.info, test.set)
			assert.Equal(t, test.want, got)
			assert.Equal(t, test.text, got.String())
		})
	}
}
