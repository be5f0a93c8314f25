package main

import (
	"bufio"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// machine describes where a run was made.
type machine struct {
	cpu, kernel, goVersion string
	cpus                   int
	memory                 uint64 // bytes
	versions               []string
}

// peers are the modules whose versions the report names.
var peers = map[string]string{
	"github.com/moby/moby/v2":             "moby",
	"go.podman.io/storage":                "podman (containers/storage)",
	"github.com/containerd/containerd/v2": "containerd",
}

func describeMachine() machine {
	m := machine{cpu: "unknown", cpus: runtime.NumCPU(), goVersion: runtime.Version()}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				m.cpu = strings.TrimSpace(value)
				break
			}
		}
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.kernel = unix.ByteSliceToString(uts.Sysname[:]) + " " + unix.ByteSliceToString(uts.Release[:])
	}
	if version, err := os.ReadFile("/sys/module/zfs/version"); err == nil {
		m.kernel += ", OpenZFS " + strings.TrimSpace(string(version))
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.memory = info.Totalram * uint64(info.Unit)
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range build.Deps {
			if name, ok := peers[dep.Path]; ok {
				m.versions = append(m.versions, name+": `"+dep.Path+"` "+dep.Version)
			}
		}
	}
	return m
}
