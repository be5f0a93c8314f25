package api

import (
	"time"
	"unicode/utf8"
)

// Info describes the server, and its caller as the server sees it.
type Info struct {
	Version string `json:"version"` // of Cowshed
	UID     uint32 `json:"uid"`     // of the caller
	// Admin says that the caller may do everything. Others may use the layers of their namespaces.
	Admin      bool        `json:"admin"`
	Namespaces []Namespace `json:"namespaces"` // of the caller; an admin has none
}

// Namespace has layers whose names begin with its Prefix.
type Namespace struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix"`
	// Readable are references of layers outside of the namespace that its members may read and fork.
	Readable []string `json:"readable"`
	// Layers limits the number of layers and snapshots. Bytes limits the sum of the limits of the layers. 0 is no
	// limit.
	Layers int    `json:"layers,omitempty"`
	Bytes  uint64 `json:"bytes,omitempty"`
	// Lifetime is the longest time after which a fork expires, such as "24h0m0s". "" is no limit.
	Lifetime string `json:"lifetime,omitempty"`
}

// Layer describes a layer.
type Layer struct {
	Name       string            `json:"name"`
	Parent     string            `json:"parent,omitempty"`
	Sealed     bool              `json:"sealed"`
	Limit      uint64            `json:"limit,omitempty"`      // bytes
	LimitScope string            `json:"limitScope,omitempty"` // whose data the limit counts: layer or total
	Usage      *uint64           `json:"usage"`                // bytes; null where the filesystem does not keep count
	Created    time.Time         `json:"created"`
	ForkOf     string            `json:"forkOf,omitempty"`  // the layer of whose moment it is a fork
	Expires    time.Time         `json:"expires,omitzero"`  // of a fork: when it is removed, unless it is in use then
	Labels     map[string]string `json:"labels,omitempty"`  // of a fork
	Image      string            `json:"image,omitempty"`   // that has it as its uppermost layer
	Details    map[string]string `json:"details,omitempty"` // of the filesystem, for people
}

// Layers is a list of layers, sorted by name.
type Layers struct {
	Layers []Layer `json:"layers"`
}

// NewLayer asks for a layer.
type NewLayer struct {
	Name      string `json:"name,omitempty"`      // made up if it is ""
	Parent    string `json:"parent,omitempty"`    // layer or image to copy; it is sealed unless it is in use
	Size      string `json:"size,omitempty"`      // how much the layer may hold, such as "10G"
	ReadWrite bool   `json:"readWrite,omitempty"` // a layer for a container, with the default limit and root style of the driver
	RootStyle string `json:"rootStyle,omitempty"` // of a copy: snapshot or shared
}

// NewForks asks for forks of a layer or snapshot.
type NewForks struct {
	Name   string            `json:"name,omitempty"`   // made up if it is ""; several are called NAME-1, NAME-2 and so on
	Count  int               `json:"count,omitempty"`  // 0 is 1
	Size   string            `json:"size,omitempty"`   // how much each may hold, such as "10G", or "none"; "" is the layer's limit
	TTL    string            `json:"ttl,omitempty"`    // time after which each is removed, such as "2h" or "90s"; "" is none
	Labels map[string]string `json:"labels,omitempty"` // facts about each
}

// Fork is a writable copy of a layer or snapshot.
type Fork struct {
	Name    string            `json:"name"`
	Expires time.Time         `json:"expires,omitzero"` // when it is removed, unless it is in use then
	Labels  map[string]string `json:"labels,omitempty"`
}

// Forks are the forks of one request. They are of the same moment.
type Forks struct {
	Forks []Fork `json:"forks"`
}

// NewSnapshot asks for a snapshot of a layer.
type NewSnapshot struct {
	Name    string `json:"name,omitempty"` // made up if it is ""
	Message string `json:"message,omitempty"`
}

// Snapshot is the content of a layer at one time.
type Snapshot struct {
	Name    string    `json:"name"`
	Layer   string    `json:"layer"`
	Time    time.Time `json:"time"`
	Message string    `json:"message,omitempty"`
	Usage   *uint64   `json:"usage"` // bytes that count for its own volume, and not the space that its removal frees; null where the filesystem does not count
	Volume  string    `json:"volume"`

	Schedule string `json:"schedule,omitempty"` // that has taken it
}

// Snapshots are the snapshots of a layer, oldest first.
type Snapshots struct {
	Snapshots []Snapshot `json:"snapshots"`
}

// Log is a layer with its moments and forks.
type Log struct {
	Name    string            `json:"name"`
	Expires time.Time         `json:"expires,omitzero"`
	Labels  map[string]string `json:"labels,omitempty"`
	Moments []Moment          `json:"moments,omitempty"` // oldest first
}

// Moment is a time at which a layer was forked or kept as a snapshot.
type Moment struct {
	Name    string    `json:"name,omitempty"` // of the snapshot
	Message string    `json:"message,omitempty"`
	Time    time.Time `json:"time"`
	Volume  string    `json:"volume"`
	Forks   []Log     `json:"forks,omitempty"`
}

// ChangeKind is the kind of a change.
type ChangeKind string

// The kinds of changes.
const (
	Added    ChangeKind = "A"
	Modified ChangeKind = "C"
	Deleted  ChangeKind = "D"
)

// Change is a path that differs between two layers.
type Change struct {
	Kind ChangeKind `json:"kind"`
	Path string     `json:"path"`
	// Bytes are the bytes of the path, in base64, if the path is not UTF-8. Path is inexact then.
	Bytes []byte `json:"bytes,omitempty"`
}

// NewChange describes a change of any path.
func NewChange(kind ChangeKind, path string) Change {
	c := Change{Kind: kind, Path: path}
	if !utf8.ValidString(path) {
		c.Bytes = []byte(path)
	}
	return c
}

// Changes are the changes of one layer since another.
type Changes struct {
	Native  bool     `json:"native"`           // the filesystem said where to look
	Reason  string   `json:"reason,omitempty"` // why both were walked
	Changes []Change `json:"changes"`
}

// NewRollback asks for a rollback of a layer to one of its snapshots.
type NewRollback struct {
	Snapshot string `json:"snapshot"`
	Live     bool   `json:"live,omitempty"` // change the files in place, also while the layer is in use
}

// Strategy decides about conflicts.
type Strategy string

// The strategies.
const (
	Refuse Strategy = "refuse" // merge nothing
	Ours   Strategy = "ours"   // keep the layer's state
	Theirs Strategy = "theirs" // take the fork's state
)

// NewMerge asks for a merge of a fork.
type NewMerge struct {
	Into     string   `json:"into,omitempty"`     // "" is the layer from which the fork was made
	Live     bool     `json:"live,omitempty"`     // change the files in place, also while the layer is in use
	Strategy Strategy `json:"strategy,omitempty"` // "" is Refuse
	Paths    []string `json:"paths,omitempty"`    // of which, and below which, the fork's state is taken
}

// Merge is the result of a merge.
type Merge struct {
	Into      string     `json:"into"`
	Changes   []Change   `json:"changes"`          // that were applied
	Conflicts []Conflict `json:"conflicts"`        // that were resolved
	Before    string     `json:"before,omitempty"` // the snapshot with the content of before; "" if there was nothing to apply
}

// Conflict is a path that a fork and the layer that it is merged into have changed in different ways.
type Conflict struct {
	Path   string     `json:"path"`
	Fork   ChangeKind `json:"fork"`
	Layer  ChangeKind `json:"layer"`
	Reason string     `json:"reason,omitempty"`
}

// Usage is how much a layer holds.
type Usage struct {
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`           // that the layer itself holds
	Total uint64 `json:"total,omitempty"` // with all that it was made from; left out if that is not known
	Limit uint64 `json:"limit,omitempty"`
}

// NewLimit asks for another limit of a layer.
type NewLimit struct {
	Size string `json:"size"` // such as "10G", or "none"
}

// NewImage asks for an image of a layer.
type NewImage struct {
	// To is the name of an image in the store, or a destination such as "oci:/srv/layout:web", "docker://HOST/web:1" or
	// "containerd://moby/web:1".
	To       string `json:"to"`
	Message  string `json:"message,omitempty"`  // for the image's history
	Force    bool   `json:"force,omitempty"`    // take the name of another image
	Compress string `json:"compress,omitempty"` // none, gzip or zstd
}

// Image is an image that was made.
type Image struct {
	Name     string   `json:"name"`
	ID       string   `json:"id"`
	Manifest string   `json:"manifest,omitempty"` // its digest, where it was written to a destination
	DiffIDs  []string `json:"diffIDs"`
}

// Progress is a line of an answer of the type MediaTypeProgress. The last line has Image or Error. An answer without such a line
// was cut off.
type Progress struct {
	Task  string `json:"task,omitempty"`
	Bytes int64  `json:"bytes,omitempty"` // that are done
	Total int64  `json:"total,omitempty"` // 0: not known
	End   string `json:"end,omitempty"`   // how the task ended
	Image *Image `json:"image,omitempty"`
	Error *Error `json:"error,omitempty"`
}
