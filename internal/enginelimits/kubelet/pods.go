package kubelet

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// maxPods is how many pods a kubelet can have: it takes 110 unless it is told otherwise.
const maxPods = 10000

// pods are the sizes of containers that have one, by the unique id of the pod and the container's name.
type pods map[string]map[string]string

// pod is the part of a pod that limits need.
type pod struct {
	Metadata struct {
		UID string `json:"uid"`
	} `json:"metadata"`
	Spec struct {
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
	} `json:"spec"`
}

type container struct {
	Name      string `json:"name"`
	Resources struct {
		Limits struct {
			EphemeralStorage string `json:"ephemeral-storage"`
		} `json:"limits"`
	} `json:"resources"`
}

// readPods reads a list of pods, and holds one of them at a time.
func readPods(r io.Reader) (pods, error) {
	decoder := json.NewDecoder(r)
	if err := expect(decoder, json.Delim('{')); err != nil {
		return nil, err
	}
	var list pods
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		if key == "items" {
			list, err = readItems(decoder)
		} else {
			err = decoder.Decode(new(json.RawMessage))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := expect(decoder, json.Delim('}')); err != nil {
		return nil, err
	}
	if list == nil {
		return nil, fault.New(errdefs.ErrUnknown, "it is no list of pods")
	}
	return list, nil
}

func readItems(decoder *json.Decoder) (pods, error) {
	list := make(pods)
	switch token, err := decoder.Token(); {
	case err != nil:
		return nil, err
	case token == nil:
		return list, nil // null
	case token != json.Delim('['):
		return nil, fault.New(errdefs.ErrUnknown, "its items are no list")
	}
	for decoder.More() {
		var p pod
		if err := decoder.Decode(&p); err != nil {
			return nil, err
		}
		if len(list) == maxPods {
			return nil, fault.New(errdefs.ErrResourceExhausted, "it has more than %d pods", maxPods)
		}
		list[p.Metadata.UID] = p.sizes()
	}
	return list, expect(decoder, json.Delim(']'))
}

func (p *pod) sizes() map[string]string {
	var sizes map[string]string
	for _, list := range [][]container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			size := c.Resources.Limits.EphemeralStorage
			if size == "" {
				continue
			}
			if sizes == nil {
				sizes = make(map[string]string)
			}
			sizes[c.Name] = size
		}
	}
	return sizes
}

func expect(decoder *json.Decoder, want json.Delim) error {
	token, err := decoder.Token()
	if err == nil && token != want {
		err = fmt.Errorf("%v instead of %v", token, want)
	}
	return err
}
