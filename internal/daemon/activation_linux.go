package daemon

import (
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-systemd/v22/activation"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Names that sockets which systemd passes on are told apart by (FileDescriptorName=, sd_listen_fds_with_names(3)).
// Sockets of other names are for containerd.
const (
	dockerSocketName  = "docker"
	metricsSocketName = "metrics"
	apiSocketName     = "api"
)

// listeners are the sockets that requests come from.
type listeners struct {
	containerd           []net.Listener
	docker, metrics, api net.Listener // nil: none
}

// activated returns the sockets that systemd has passed on to this process, none where it has not.
func activated() (l listeners, err error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return listeners{}, fmt.Errorf("sockets of systemd: %w", err)
	}
	for name, list := range named {
		for _, passed := range list {
			switch {
			case passed == nil:
				return listeners{}, fault.New(errdefs.ErrInvalidArgument, "systemd passed a socket %q that does not listen for streams", name)
			case name == dockerSocketName:
				l.docker = passed
			case name == metricsSocketName:
				l.metrics = passed
			case name == apiSocketName:
				l.api = passed
			default:
				l.containerd = append(l.containerd, passed)
			}
		}
	}
	return l, nil
}
