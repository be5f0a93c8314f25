package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

// validMaintainer is a name and an address in the form of deb-email(7), with a domain that is more than one label.
var validMaintainer = regexp.MustCompile(`^[^<>",[:cntrl:] ][^<>",[:cntrl:]]* <[^<>@"[:cntrl:] ]+@[^<>@"[:cntrl:] ]+\.[^<>@"[:cntrl:] ]+>$`)

// checkMaintainer returns an error unless the text is a name and an address. Debian's policy asks for the maintainer's name
// and a working address, so there is no default.
func checkMaintainer(text string) error {
	if validMaintainer.MatchString(text) {
		return nil
	}
	return fmt.Errorf("maintainer of the packages %q: give a name and an address, as in: make release MAINTAINER='Jo Doe <jo@example.org>'", text)
}

// writePackages writes the packages of an architecture.
func (b build) writePackages(p program) error {
	debInfo, err := b.packageInfo(p, debPlace)
	if err != nil {
		return err
	}
	rpmInfo, err := b.packageInfo(p, samePlace)
	if err != nil {
		return err
	}
	return errors.Join(b.writePackage(deb.Default, debInfo), b.writePackage(rpm.DefaultRPM, rpmInfo))
}

func (b build) writePackage(kind nfpm.Packager, info *nfpm.Info) (err error) {
	file, err := os.Create(filepath.Join(b.dist(), kind.ConventionalFileName(info)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return kind.Package(info, file)
}

// packageInfo describes the package of a program. place says where a file goes that is installed at a path.
func (b build) packageInfo(p program, place func(string) string) (*nfpm.Info, error) {
	contents, err := contentsOf(b.staged(p.arch), place)
	if err != nil {
		return nil, err
	}
	script := func(name string) string { return filepath.Join(b.source(), "packaging/scripts", name) }
	return nfpm.WithDefaults(&nfpm.Info{
		Name: "cowshed", Arch: p.arch, Platform: "linux",
		Version: packageVersion(p.version()), VersionSchema: "none", Release: "1",
		Section: "admin", Priority: "optional",
		Maintainer: b.maintainer,
		Homepage:   "https://github.com/cowshed/cowshed",
		License:    "Apache-2.0",
		Description: `container layers as copy-on-write volumes of btrfs and ZFS
The daemon is snapshotter and differ of containerd, which Docker and Kubernetes
use. For older Docker Engines it is a graph driver plugin. The command makes,
compares, limits and removes layers, and imports and exports images.`,
		MTime:           p.date,
		DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Contents:   contents,
			Recommends: []string{"btrfs-progs"},
			Umask:      0o022,
			Scripts: nfpm.Scripts{
				PostInstall: script("postinstall.sh"), PreRemove: script("preremove.sh"), PostRemove: script("postremove.sh"),
			},
			RPM: nfpm.RPM{BuildHost: "localhost"},
		},
	}), nil
}

// contentsOf lists the files below a directory as those of a package.
func contentsOf(dir string, place func(string) string) (files.Contents, error) {
	contents := files.Contents{
		{Destination: "/etc/cowshed", Type: files.TypeDir},
		{Destination: "/usr/share/doc/cowshed", Type: files.TypeDir},
	}
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		below, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file", file)
		}
		content := &files.Content{
			Source: file, Destination: place("/" + filepath.ToSlash(below)), Type: files.TypeFile,
			FileInfo: &files.ContentFileInfo{Mode: info.Mode().Perm()},
		}
		if strings.HasPrefix(content.Destination, "/etc/") {
			content.Type = files.TypeConfigNoReplace
		}
		contents = append(contents, content)
		return nil
	})
	return contents, err
}

func samePlace(path string) string { return path }

// debPlace is where Debian has some files that others have elsewhere.
func debPlace(path string) string {
	switch path {
	case "/usr/share/zsh/site-functions/_cowshed":
		return "/usr/share/zsh/vendor-completions/_cowshed"
	case "/usr/share/doc/cowshed/LICENSE":
		return "/usr/share/doc/cowshed/copyright"
	}
	return path
}
