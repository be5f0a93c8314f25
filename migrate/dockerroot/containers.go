package dockerroot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
	"github.com/cowshed/cowshed/quota"
)

// mount is the record of a container's layers in the layerdb.
type mount struct {
	id     string        // the writable layer
	initID string        // the layer below it, "" if there is none
	parent digest.Digest // chain ID of the image's layer, "" for none
	err    error
}

// readMounts reads which layers containers have.
func (l *lister) readMounts(ctx context.Context) error {
	db := path.Join(l.image, "layerdb/mounts")
	l.mounts = map[string]*mount{}
	return l.eachID(ctx, db, whatContainer, func(id string) error {
		m := &mount{}
		m.err = m.read(l.root, path.Join(db, id))
		l.owners.claim(m.id)
		l.owners.claim(m.initID)
		l.mounts[id] = m
		return nil
	})
}

func (m *mount) read(root *rootdir.Dir, name string) error {
	dir, err := root.Sub(name)
	if err != nil {
		return rootdir.NotFound(err)
	}
	defer dir.Close()
	data, err := dir.ReadFile("mount-id", maxLine)
	if err != nil {
		return rootdir.NotFound(err)
	}
	if m.id, err = parseID(data, isMountID); err != nil {
		return fault.Wrap("read", "mount-id", err)
	}
	data, err = dir.ReadFile("init-id", maxLine)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if m.initID, err = parseID(data, isMountID); err != nil {
			return fault.Wrap("read", "init-id", err)
		}
	}
	if m.parent, err = readDigest(dir, "parent"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// containerConfig is a part of a container's config.v2.json.
type containerConfig struct {
	ID, Name, Driver, Image string
	State                   struct{ Running bool }
}

// addContainers adds the containers of the driver, with their layers.
func (l *lister) addContainers(ctx context.Context) error {
	images := map[digest.Digest]bool{}
	for i := range l.inv.Images {
		images[l.inv.Images[i].ID] = true
	}
	err := l.eachID(ctx, "containers", whatContainer, func(id string) error {
		m := l.mounts[id]
		delete(l.mounts, id)
		l.addContainer(id, m, images)
		return nil
	})
	if err != nil {
		return err
	}
	// A build that was killed leaves such layers.
	for _, id := range slices.Sorted(maps.Keys(l.mounts)) {
		l.problem(whatContainer, id, "", fault.New(errdefs.ErrNotFound, "it has layers, but no configuration"))
	}
	return nil
}

// addContainer adds a container, or its problem. m is nil if the layerdb has nothing about it.
func (l *lister) addContainer(id string, m *mount, images map[digest.Digest]bool) {
	config, err := readContainer(l.root, id)
	if err != nil {
		l.problem(whatContainer, id, "", err)
		return
	}
	if config.Driver != l.driver && (config.Driver != "" || l.driver != "aufs") { // the oldest have no driver, and mean aufs
		return
	}
	name := containerName(config.Name)
	layers, err := l.containerLayers(id, m)
	if err != nil {
		l.problem(whatContainer, id, name, err)
		return
	}
	image, err := parseDigest(config.Image)
	if err != nil || !images[image] {
		image = ""
	}
	l.inv.Layers = append(l.inv.Layers, layers...)
	l.inv.Containers = append(l.inv.Containers, migrate.Container{
		ID:      id,
		Name:    name,
		Image:   image,
		Layer:   m.id,
		Running: config.State.Running,
		Dir:     path.Join("containers", id),
	})
}

// readContainer reads the configuration of a container.
func readContainer(root *rootdir.Dir, id string) (*containerConfig, error) {
	data, err := root.ReadFile(path.Join("containers", id, "config.v2.json"), maxConfig)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	return parseContainer(data, id)
}

// parseContainer reads the configuration of the container with that ID.
func parseContainer(data []byte, id string) (*containerConfig, error) {
	config := &containerConfig{}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(config); err != nil {
		return nil, notJSON(err)
	}
	if config.ID != id {
		return nil, fault.New(errdefs.ErrDataLoss, "the configuration belongs to container %s", shown(config.ID))
	}
	return config, nil
}

// containerLayers makes the layers of a container: the one between the image and it, if there is one, and the writable one.
func (l *lister) containerLayers(id string, m *mount) ([]migrate.Layer, error) {
	if m == nil {
		return nil, fault.New(errdefs.ErrNotFound, "the layerdb has no layer of it")
	}
	if m.err != nil {
		return nil, m.err
	}
	parent, err := l.layers.idOf(m.parent)
	if err != nil {
		return nil, err
	}
	limit, err := l.limitOf(id, m)
	if err != nil {
		return nil, err
	}
	var layers []migrate.Layer
	if m.initID != "" {
		layers = append(layers, migrate.Layer{ID: m.initID, Parent: parent, Kind: migrate.InitLayer, Size: -1})
		parent = m.initID
	}
	layers = append(layers, migrate.Layer{ID: m.id, Parent: parent, Kind: migrate.ContainerLayer, Size: -1, Limit: limit})
	below := l.layers.depthOf(m.parent)
	for i := range layers {
		if err := l.owners.check(layers[i].ID); err != nil {
			return nil, err
		}
		if err := l.keeper.check(layers[i].ID, below+i); err != nil {
			return nil, fault.Wrap("check content", layers[i].ID, err)
		}
	}
	return layers, nil
}

// limitOf is the limit of a container. The driver's own record counts before the option that the container was made with.
func (l *lister) limitOf(id string, m *mount) (int64, error) {
	data, err := l.root.ReadFile(path.Join("containers", id, "hostconfig.json"), maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return l.keeper.limit(m.id), nil
	}
	if err != nil {
		return 0, err
	}
	option, err := parseLimit(data)
	if err != nil {
		return 0, err
	}
	if limit := l.keeper.limit(m.id); limit > 0 || option == "" {
		return limit, nil
	}
	limit, err := quota.ParseSize(option)
	if err != nil {
		// Docker has made the container with this option, so that the driver has not looked at it.
		l.log.Warn("docker: a container's limit is ignored", "container", id, "size", shown(option), "error", err)
		return 0, nil
	}
	return int64(limit), nil // at most 2^63-1
}

// parseLimit reads the option size of a container, as in "docker run --storage-opt size=10G". "" is none.
func parseLimit(data []byte) (string, error) {
	var config struct{ StorageOpt map[string]string }
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&config); err != nil {
		return "", notJSON(err)
	}
	for _, option := range slices.Sorted(maps.Keys(config.StorageOpt)) {
		if strings.EqualFold(option, "size") {
			return config.StorageOpt[option], nil
		}
	}
	return "", nil
}

var goodName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// containerName is a container's name without the slash, "" if Docker would not give such a name.
func containerName(name string) string {
	name = strings.TrimPrefix(name, "/")
	if len(name) > maxShown || !goodName.MatchString(name) {
		return ""
	}
	return name
}
