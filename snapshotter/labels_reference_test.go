package snapshotter

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"

	"github.com/cowshed/cowshed/internal/golden"
)

// TestLabelsReference: docs/reference/labels.md has the labels with a meaning here.
func TestLabelsReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Labels

<!-- Generated: go test ./snapshotter -run Reference -update -->

The snapshotter keeps all labels of a snapshot, and returns them. These have a meaning:

| label | of | value | effect |
|---|---|---|---|
`)
	for _, row := range [][4]string{
		{snapshots.LabelSnapshotMaxSize, "active snapshots", "bytes, a decimal number above 0",
			"the snapshot's limit, instead of `default_limit` or `build_limit`. No effect on a snapshot into which a layer is unpacked, nor on Commit and View"},
		{snapshots.LabelSnapshotUIDMapping, "snapshots", "`container:host:size`, several with commas",
			"mounts map user ids. It needs the label for group ids"},
		{snapshots.LabelSnapshotGIDMapping, "snapshots", "`container:host:size`, several with commas",
			"mounts map group ids. It needs the label for user ids"},
		{VolumeLabel, "snapshots", "the name of the volume",
			"for the snapshotter itself, in `metadata.db`. Clients do not see it, and a request that sets it fails with `InvalidArgument`"},
		{labels.LabelUncompressed, "blobs that the differ makes", "the digest of the layer's tar",
			"set by the differ on each blob that it compresses"},
	} {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", row[0], row[1], row[2], row[3])
	}
	b.WriteString(`
Values that cannot be read are ` + "`InvalidArgument`" + `. [snapshot-uses.md](snapshot-uses.md) says which limit a snapshot without
` + "`max-size`" + ` gets.
`)
	golden.Check(t, "../docs/reference/labels.md", b.String())
}
