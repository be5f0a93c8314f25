package oldgraph

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// makeConfig makes the configuration of an image, of the records of it and of those below, base first, and of the
// layers' digests. The record of the image stays, without the fields that tell its place in the graph. It gets the
// fields that came later.
func makeConfig(chain []*image, diffIDs []digest.Digest) ([]byte, error) {
	top := chain[len(chain)-1]
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(top.json, &fields); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "its record: %w", err)
	}
	for _, name := range []string{"id", "parent", "parent_id", "layer_id", "throwaway", "Size", "checksum"} {
		delete(fields, name)
	}
	var history []ocispec.History
	for _, i := range chain {
		created := i.record.Created
		history = append(history, ocispec.History{
			Created:   &created,
			CreatedBy: strings.Join(i.record.ContainerConfig.Cmd, " "),
			Author:    i.record.Author,
			Comment:   i.record.Comment,
		})
	}
	for name, value := range map[string]any{
		"rootfs":       ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
		"history":      history,
		"os":           "linux",
		"architecture": architecture(fields["architecture"]),
	} {
		encoded, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[name] = encoded
	}
	if config, ok := fields["config"]; ok {
		with, err := withPorts(config)
		if err != nil {
			return nil, fault.New(errdefs.ErrDataLoss, "its record: config: %w", err)
		}
		fields["config"] = with
	}
	config, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, &ocispec.Image{}); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "its record: %w", err)
	}
	return config, nil
}

// architecture is the present name. Docker ran on one machine only, and called it as uname(1) does.
func architecture(field json.RawMessage) string {
	var name string
	if err := json.Unmarshal(field, &name); err != nil || name == "" || name == "x86_64" {
		return "amd64"
	}
	return name
}

// withPorts gives a configuration the field ExposedPorts, if it has only the older PortSpecs, such as "8080:80/tcp".
func withPorts(config json.RawMessage) (json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &fields); err != nil || fields == nil {
		return config, err
	}
	var ports struct {
		PortSpecs    []string
		ExposedPorts map[string]struct{}
	}
	if err := json.Unmarshal(config, &ports); err != nil {
		return nil, err
	}
	if len(ports.PortSpecs) == 0 || len(ports.ExposedPorts) > 0 {
		return config, nil
	}
	exposed := map[string]struct{}{}
	for _, spec := range ports.PortSpecs {
		inside := spec[strings.LastIndexByte(spec, ':')+1:]
		port, protocol, _ := strings.Cut(inside, "/")
		if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return nil, fmt.Errorf("port %.100q is malformed", spec)
		}
		if protocol == "" {
			protocol = "tcp"
		}
		exposed[port+"/"+protocol] = struct{}{}
	}
	encoded, err := json.Marshal(exposed)
	if err != nil {
		return nil, err
	}
	fields["ExposedPorts"] = encoded
	return json.Marshal(fields)
}
