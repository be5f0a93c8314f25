package main

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// version is set by builds from sources without git (make build VERSION=1.2.3).
var version string

// buildVersion is the version of a program, and the commit that it was built from.
type buildVersion struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Date     string `json:"date,omitempty"`     // of the commit, as RFC 3339
	Modified bool   `json:"modified,omitempty"` // the sources had changes that were not committed
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"architecture"`
}

func newVersionCommand() *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the commit that it was built from",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := readVersion()
			if asJSON {
				return printJSON(cmd, v)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "cowshed %s\n", v)
			return err
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

// String is the version for people, on one line.
func (v buildVersion) String() string {
	var details []string
	if v.Commit != "" {
		commit := "commit " + v.Commit
		if v.Modified {
			commit += " with changes"
		}
		details = append(details, commit)
	}
	if v.Date != "" {
		details = append(details, v.Date)
	}
	details = append(details, v.Go, v.OS+"/"+v.Arch)
	return v.Version + " (" + strings.Join(details, ", ") + ")"
}

// readVersion reads the version of this program from the go command's record in it.
func readVersion() buildVersion {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return versionOf(info, version)
}

// versionOf is the version of a program with that record. set goes before the version of its module.
func versionOf(info *debug.BuildInfo, set string) buildVersion {
	v := buildVersion{Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	module := info.Main.Version
	if module == "(devel)" {
		module = ""
	}
	v.Version = cmp.Or(set, module, "devel")
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			v.Commit = setting.Value
		case "vcs.time":
			v.Date = setting.Value
		case "vcs.modified":
			v.Modified = setting.Value == "true"
		}
	}
	return v
}

// versionString is the version alone.
func versionString() string { return readVersion().Version }
