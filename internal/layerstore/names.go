package layerstore

import (
	"crypto/rand"
	"encoding/hex"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

// CheckNewLayer refuses names of the forms that layers of images, and moments, have.
func CheckNewLayer(name string) error {
	if image.IsLayerName(name) || image.IsPartial(name) || live.IsMoment(name) {
		return fault.Said(errdefs.ErrInvalidArgument, "layer name %s is of the form that layers of images or snapshots have; choose another", name)
	}
	return nil
}

// CheckFork makes sure that a fork of a container can have a name: it is in the snapshotter's home.
func CheckFork(name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	if snapshotter.IsVolumeName(name) {
		return fault.Said(errdefs.ErrInvalidArgument, "layer name %s is of the form that volumes of containers have; choose another", name)
	}
	return CheckNewLayer(name)
}

// RandomName makes up the name of a layer.
func RandomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// ShortName is a layer's name as people are shown it: names of image layers have 64 digits.
func ShortName(name string) string {
	if image.IsLayerName(name) {
		return name[:12]
	}
	return name
}
