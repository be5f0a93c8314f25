package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// InitRequest has the engine's arguments of Init.
type InitRequest struct {
	Home    string       // directory for the driver, <data-root>/<name of the plugin>
	Options []string     // "key=value", as given to the engine with --storage-opt
	UIDMaps []user.IDMap // user ids in the containers and on the host; nil: the same
	GIDMaps []user.IDMap
}

// IDMap is the mapping of both kinds of ids.
func (r InitRequest) IDMap() user.IdentityMapping {
	return user.IdentityMapping{UIDMaps: r.UIDMaps, GIDMaps: r.GIDMaps}
}

// initMessage is InitRequest in the form that the protocol has it.
type initMessage struct {
	Home    string
	Opts    []string
	UIDMaps []idRange
	GIDMaps []idRange
}

// idRange is one range of mapped ids in the form that the protocol has it.
type idRange struct {
	ContainerID int64 `json:"container_id"`
	HostID      int64 `json:"host_id"`
	Size        int64 `json:"size"`
}

// MarshalJSON implements json.Marshaler.
func (r InitRequest) MarshalJSON() ([]byte, error) {
	return json.Marshal(initMessage{
		Home:    r.Home,
		Opts:    r.Options,
		UIDMaps: idRanges(r.UIDMaps),
		GIDMaps: idRanges(r.GIDMaps),
	})
}

// UnmarshalJSON implements json.Unmarshaler. Fields that the protocol does not have are an error, and so are invalid
// ids.
func (r *InitRequest) UnmarshalJSON(text []byte) error {
	var message initMessage
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&message); err != nil {
		return err
	}
	uids, err := idMaps(message.UIDMaps)
	if err != nil {
		return fmt.Errorf("UIDMaps: %w", err)
	}
	gids, err := idMaps(message.GIDMaps)
	if err != nil {
		return fmt.Errorf("GIDMaps: %w", err)
	}
	*r = InitRequest{Home: message.Home, Options: message.Opts, UIDMaps: uids, GIDMaps: gids}
	return nil
}

// check reports whether a driver can be opened by the request.
func (r InitRequest) check() error {
	if !filepath.IsAbs(r.Home) {
		return fault.New(errdefs.ErrInvalidArgument, "the home directory must be an absolute path, not %q", r.Home)
	}
	return nil
}

func idRanges(maps []user.IDMap) []idRange {
	var ranges []idRange
	for _, m := range maps {
		ranges = append(ranges, idRange{ContainerID: m.ID, HostID: m.ParentID, Size: m.Count})
	}
	return ranges
}

// idMaps returns nil where there are no ranges: to package user, a map that is empty but not nil maps no id.
func idMaps(ranges []idRange) ([]user.IDMap, error) {
	const ids = 1 << 32 // Linux's, of which the last stands for none
	var maps []user.IDMap
	for _, r := range ranges {
		if r.ContainerID < 0 || r.HostID < 0 || r.Size <= 0 ||
			r.Size >= ids || r.ContainerID >= ids-r.Size || r.HostID >= ids-r.Size {
			return nil, fault.New(errdefs.ErrInvalidArgument, "ids cannot be: container_id %d, host_id %d, size %d", r.ContainerID, r.HostID, r.Size)
		}
		maps = append(maps, user.IDMap{ID: r.ContainerID, ParentID: r.HostID, Count: r.Size})
	}
	return maps, nil
}
