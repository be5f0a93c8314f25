package harness

// CowshedSnapshotter and CowshedDiffer are containerd's names for Cowshed's services. Two plugins of other programs
// cannot have the same name, whatever their types.
const (
	CowshedSnapshotter = "cowshed"
	CowshedDiffer      = "cowshed-diff"
)

// ProxyOptions make containerd take its snapshotter and its first differ, of the given names, from a socket. root is
// where the snapshotter keeps its data.
func ProxyOptions(socket, snapshotter, differ, root string) ContainerdOptions {
	return ContainerdOptions{
		Proxies: []Proxy{
			{Name: snapshotter, Type: "snapshot", Address: socket, Root: root},
			{Name: differ, Type: "diff", Address: socket},
		},
		Differs:     []string{differ, "walking"},
		Unpack:      []Unpack{{Snapshotter: snapshotter, Differ: differ}},
		Snapshotter: snapshotter,
	}
}
