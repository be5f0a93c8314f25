package mounttable

import (
	"bufio"
	"os"

	"github.com/cowshed/cowshed/internal/overlaysource"
)

// target is the directory whose uses are looked for.
type target struct {
	dir        string
	names      func(overlaysource.Source) bool // nil: not known
	ownSources func() map[uint64]string
}

// overlay is a mount of an overlay.
type overlay struct {
	point  string
	device uint64   // of its superblock, all mounts of which have the same source
	layers []string // their paths, as they were given

	hasSource bool // the kernel has told the source
	ofCowshed bool // Cowshed has written it, and:
	source    overlaysource.Source
}

func (o *overlay) setSource(source string) {
	o.hasSource = true
	o.source, o.ofCowshed = overlaysource.Parse(source)
}

// layerIn reports whether an overlay has a target as a layer, and tells the path by which it has, or the source.
//
// In the mount namespace of this process, a path below the target's own counts, whatever is mounted there.
//
// Anybody can mount an overlay with any source, in a user namespace of their own. So a source may only add a use there. An
// overlay in a mount namespace of this user namespace was mounted by somebody who is privileged here. Its source stands for
// the comparison of the ends of paths, which is a guess.
func (s *seen) layerIn(o *overlay, t target) (layer string, ok bool) {
	guess := ""
	for _, layer := range o.layers {
		if s.isWithin(layer, t.dir) || within(layer, t.dir) && s.namespace.isOfProcess() {
			return layer, true
		}
		if guess == "" && looksWithin(layer, t.dir) {
			guess = layer
		}
	}
	if t.names != nil {
		if !o.hasSource {
			known := *o // others read o
			known.setSource(t.ownSources()[o.device])
			o = &known
		}
		if o.ofCowshed && t.names(o.source) {
			return o.source.String(), true
		}
		if guess != "" && o.ofCowshed && s.namespace.own() {
			return "", false
		}
	}
	return guess, guess != ""
}

// ownSources are the sources of the overlays in the mount namespace of this process, by device. Before Linux 6.13, the list of
// mounts has no sources.
func ownSources() map[uint64]string {
	sources := map[uint64]string{}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	_, _ = visitMounts(file, namespace{}, func(_ namespace, lines *bufio.Scanner) error {
		for lines.Scan() {
			if line, ok := parseLine(lines.Bytes()); ok && string(line.fsType) == "overlay" {
				sources[line.device] = unescape(string(line.source))
			}
		}
		return nil
	})
	return sources
}
