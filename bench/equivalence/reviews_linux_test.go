package equivalence

import (
	"archive/tar"
	"bytes"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// review is a kind of difference that is as it should be.
type review struct {
	name   string
	reason string
	peers  string // names, with a space between them
	// The form of the difference: one of these matches it.
	mine, theirs, tree string // regular expressions: Cowshed's error, the peer's, a line of treecmp.Diff
	// because says whether an entry is the cause: of those with the path of a line of tree, or any of the tar.
	because func(hdr *tar.Header) bool
	above   bool                   // the line is about a directory above the entry
	of      func(data []byte) bool // says whether the tar is the cause
	long    bool                   // only tars of the long variant need it
}

const allPeers = "go-archive containerd podman"

var reviews = []review{
	{
		name:    "sparse file of old GNU tar",
		reason:  "GNU tar writes them, and archive/tar reads them; the peers refuse type S",
		peers:   allPeers,
		theirs:  `unhandled tar header type 83`,
		because: isType(tar.TypeGNUSparse),
	},
	{
		name:   "cut off behind an extended header",
		reason: "the entry that the header belongs to is lost, which archive/tar does not tell its callers",
		peers:  allPeers,
		mine:   `malformed layer: unexpected EOF`,
		of:     cutOff,
	},
	{
		name:    "name that leads out of the root",
		reason:  "the layer is broken or hostile; a file elsewhere than it says helps nobody",
		peers:   "containerd podman",
		mine:    `malformed layer: the name leads out of the root`,
		because: func(hdr *tar.Header) bool { return strings.HasPrefix(path.Clean(hdr.Name), "../") },
		long:    true,
	},
	{
		name:    "directories above the name of a global header",
		reason:  "the header is about others; its name is no file of the layer",
		peers:   allPeers,
		tree:    `only in the second$`,
		because: isType(tar.TypeXGlobalHeader),
		above:   true,
		long:    true,
	},
	{
		name:   "path through a link that leads above the root",
		reason: "the link means the root there, as in a container; go-archive refuses what the kernel would not find",
		peers:  "go-archive",
		theirs: `path escapes from parent`,
		because: func(hdr *tar.Header) bool {
			return hdr.Typeflag == tar.TypeSymlink && strings.HasPrefix(path.Join(path.Dir(hdr.Name), hdr.Linkname), "..")
		},
		long: true,
	},
	{
		name:    "attribute of macOS",
		reason:  "no filesystem of Linux has its namespace",
		peers:   "go-archive",
		theirs:  `xattr "com\.apple\.[^"]*": operation not supported`,
		because: hasXattr("com.apple."),
		long:    true,
	},
	{
		name:    "label of SELinux",
		reason:  "a layer that has one means it; podman leaves labels to the mount",
		peers:   "podman",
		tree:    `xattr security\.selinux: only in the first`,
		because: hasXattr("security.selinux"),
	},
}

func isType(types ...byte) func(*tar.Header) bool {
	return func(hdr *tar.Header) bool { return bytes.IndexByte(types, hdr.Typeflag) >= 0 }
}

func hasXattr(prefix string) func(*tar.Header) bool {
	return func(hdr *tar.Header) bool {
		for key := range hdr.PAXRecords {
			if strings.HasPrefix(key, "SCHILY.xattr."+prefix) {
				return true
			}
		}
		return false
	}
}

// cutOff says whether a tar ends with a header that is about the next one.
func cutOff(data []byte) bool {
	extended := false
	for isTar(data) {
		size, err := strconv.ParseInt(strings.Trim(string(data[124:136]), " \x00"), 8, 64)
		if err != nil {
			return false
		}
		extended = strings.IndexByte("xgKL", data[156]) >= 0
		data = data[min(int64(len(data)), blockSize+(size+blockSize-1)&^(blockSize-1)):]
	}
	return extended && len(bytes.Trim(data, "\x00")) == 0
}

// reviewOf returns the review of a difference, nil if there is none.
func reviewOf(d difference, s sample) *review {
	for i := range reviews {
		r := &reviews[i]
		if strings.Contains(" "+r.peers+" ", " "+d.peer+" ") && r.fits(d) && r.caused(d, s.hdrs) && (r.of == nil || r.of(s.data)) {
			return r
		}
	}
	return nil
}

func (r *review) fits(d difference) bool {
	switch {
	case d.mine != nil:
		return r.mine != "" && regexp.MustCompile(r.mine).MatchString(d.mine.Error())
	case d.theirs != nil:
		return r.theirs != "" && regexp.MustCompile(r.theirs).MatchString(d.theirs.Error())
	}
	return r.tree != "" && regexp.MustCompile(r.tree).MatchString(d.tree)
}

func (r *review) caused(d difference, hdrs []*tar.Header) bool {
	if r.because == nil {
		return true
	}
	for _, hdr := range hdrs {
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		about := d.tree == "" || name == d.path || r.above && strings.HasPrefix(name, d.path+"/")
		if about && r.because(hdr) {
			return true
		}
	}
	return false
}
