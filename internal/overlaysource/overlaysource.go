// Package overlaysource has the source of the overlays that Cowshed mounts. The kernel tells the layers of an overlay only
// as the paths that it was given. So the source names the volumes that the layers are in.
//
// docs/reference/on-disk-format.md specifies the form.
package overlaysource

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// Home identifies a home among those of all filesystems. The zero value is a home that is not known.
type Home struct {
	filesystem uint64 // the id of the filesystem, on btrfs of the subvolume
	inode      uint64
}

// Volume identifies a volume among those of all homes, by its name. A name stands for the volumes that have it one after
// another, just as the paths of an overlay do. 0 is none.
type Volume uint64

// Volume returns the volume of that name, or none if the home is not known.
func (h Home) Volume(name string) Volume {
	if h.filesystem == 0 {
		return 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%x-%x/%s", h.filesystem, h.inode, name))
	return Volume(binary.BigEndian.Uint64(sum[:]))
}

// Source is the source of an overlay.
type Source struct {
	Upper Volume // the volume whose changes the overlay shows
	Lower Volume // the volume below
	Name  string // for people, and for programs that look for the volume
}

// prefix begins each source. A source has no colon: programs such as df take a filesystem with one for a remote one.
const prefix = "cowshed/"

// String is the source as it is given to the kernel. Without both volumes it is the name alone.
func (s Source) String() string {
	if s.Upper == 0 || s.Lower == 0 {
		return s.Name
	}
	return fmt.Sprintf("%s%x-%x/%s", prefix, uint64(s.Upper), uint64(s.Lower), s.Name)
}

// Has reports whether a volume has one of the layers.
func (s Source) Has(v Volume) bool { return v != 0 && (s.Upper == v || s.Lower == v) }

// IsIn returns a function that tells the sources that have the volume. It is nil if that is none.
func (v Volume) IsIn() func(Source) bool {
	if v == 0 {
		return nil
	}
	return func(s Source) bool { return s.Has(v) }
}

// IsUpper returns a function that tells the sources whose upper the volume has. It is nil if that is none.
func (v Volume) IsUpper() func(Source) bool {
	if v == 0 {
		return nil
	}
	return func(s Source) bool { return s.Upper == v }
}

// Parse reads a source. ok is false if it is not exactly as String writes it, with both volumes. Anybody may mount an overlay
// with any source.
func Parse(source string) (s Source, ok bool) {
	volumes, name, ok := strings.Cut(strings.TrimPrefix(source, prefix), "/")
	if !ok {
		return Source{}, false
	}
	upper, lower, _ := strings.Cut(volumes, "-")
	s = Source{Upper: parseVolume(upper), Lower: parseVolume(lower), Name: name}
	if name == "" || strings.Contains(name, "/") || s.Upper == 0 || s.Lower == 0 || s.String() != source {
		return Source{}, false
	}
	return s, true
}

// parseVolume returns 0 for a text that is no volume.
func parseVolume(text string) Volume {
	v, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0
	}
	return Volume(v)
}
