package snapshotter_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"

	"github.com/cowshed/cowshed/internal/golden"
	"github.com/cowshed/cowshed/migrate/tocontainerd"
	"github.com/cowshed/cowshed/snapshotter"
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
			"the snapshot's limit, instead of `default_limit` or `build_limit`. No effect on a snapshot into which a layer is unpacked, nor on Commit and View. Update with another value changes the limit"},
		{snapshots.LabelSnapshotUIDMapping, "snapshots", "`container:host:size`, several with commas",
			"mounts map user ids. It needs the label for group ids"},
		{snapshots.LabelSnapshotGIDMapping, "snapshots", "`container:host:size`, several with commas",
			"mounts map group ids. It needs the label for user ids"},
		{snapshotter.RootStyleLabel, "active snapshots", "`snapshot` or `shared`",
			"the snapshot's root style, instead of `root_style`. containerd does not pass this label on, so it is for clients of Cowshed's own socket. No effect on Commit, View and Update, nor on a snapshot without a parent"},
		{snapshotter.InheritedRootStyleLabel, "active snapshots", "`snapshot` or `shared`",
			"the same, for clients of containerd. No effect on a snapshot into which a layer is unpacked. The label above comes first"},
		{snapshotter.AdoptLabel, "active snapshots", "`" + snapshotter.Offered + "`",
			"the snapshot is a copy of a volume of another program, see below. Not kept. No effect on Commit and View"},
		{snapshotter.VolumeLabel, "snapshots", "the name of the volume",
			"for the snapshotter itself, in `metadata.db`. Clients do not see it, and a request that sets it fails with `InvalidArgument`"},
		{labels.LabelUncompressed, "blobs that the differ makes", "the digest of the layer's tar",
			"set by the differ on each blob that it compresses"},
	} {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", row[0], row[1], row[2], row[3])
	}
	b.WriteString(`
Values that cannot be read are ` + "`InvalidArgument`" + `. [snapshot-uses.md](snapshot-uses.md) says which limit a snapshot without
` + "`max-size`" + ` gets. A snapshot without a label of a root style has ` + "`root_style`" + ` if its use is container, and ` + "`snapshot`" + ` otherwise.
`)
	b.WriteString(`
## Volumes of other programs

` + "`cowshed migrate`" + ` moves volumes of other graph drivers to containerd without copying data. It says to Cowshed, at Cowshed's
own socket, which volume the next snapshot with a certain namespace and key is to be a copy of. The label of the snapshot
says no more than that there is such an offer. Prepare fails with ` + "`NotFound`" + ` if there is none, and with ` + "`Unimplemented`" + ` if
the volume cannot be adopted.

Only root can connect to the socket. containerd passes on labels below ` + "`containerd.io/snapshot/`" + ` from annotations of pods and
images, and no others. So no label names a volume: the author of a pod who sets this one gets an error, and reads nothing.
An offer is good for one snapshot, and for one minute.
`)
	b.WriteString(`
## Labels of a migration

` + "`cowshed migrate --to containerd`" + ` knows by these labels the things that it has made. They are in containerd's own database:

| label | of | value |
|---|---|---|
`)
	for _, row := range [][3]string{
		{tocontainerd.LayerLabel, "snapshots, and the lease of a container", "the ID of the layer in the old root"},
		{tocontainerd.FillingLabel, "active snapshots", "there until the snapshot is whole"},
		{tocontainerd.NameLabel, "the snapshot of a container, outside the namespace `" + tocontainerd.Moby + "`", "the name of the container"},
		{tocontainerd.FormatLabel, "blobs of layers", "how the blob is compressed"},
		{tocontainerd.ImageLabel, "images and manifests", "the ID of the image in the old root"},
		{tocontainerd.TagLabel, "images", "the name that the migration has given. `docker tag` copies the label, and so it tells the copy"},
		{tocontainerd.ParentLabel, "images", "the ID, in the old root, of the image that it was built from"},
		{tocontainerd.ViewLabel, "leases of views", "the name of the migration's lease"},
	} {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", row[0], row[1], row[2])
	}
	golden.Check(t, "../docs/reference/labels.md", b.String())
}
