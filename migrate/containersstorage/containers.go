package containersstorage

import (
	"errors"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// addContainer lists a container, or a Problem.
func (l *lister) addContainer(record *containerRecord) {
	container, err := l.container(record)
	if err != nil {
		l.problem("container", record.ID, firstOf(record.Names), err)
		return
	}
	l.inv.Containers = append(l.inv.Containers, *container)
}

func (l *lister) container(record *containerRecord) (*migrate.Container, error) {
	if err := cowcommon.CheckID(record.ID); err != nil {
		return nil, err
	}
	if isMapped(record.UIDMap, record.GIDMap) {
		return nil, fault.New(errdefs.ErrNotImplemented, "the container has a user namespace with mapped ids")
	}
	top, err := l.whole(record.Layer)
	if err != nil {
		return nil, err
	}
	if l.used[top] {
		return nil, fault.New(errdefs.ErrDataLoss, "the layer %q belongs to an image or to another container", top.ID)
	}
	if top.parent != nil {
		if err := top.parent.wrong; err != nil {
			return nil, err
		}
		if l.used[top.parent] && top.parent.kind != migrate.ImageLayer {
			return nil, fault.New(errdefs.ErrDataLoss, "layer %q is above the layer of another container", top.ID)
		}
	}
	container := &migrate.Container{ID: record.ID, Name: firstOf(record.Names), Layer: top.ID}
	if l.images[record.Image] {
		container.Image = digest.NewDigestFromEncoded(digest.SHA256, record.Image)
	}
	if container.Dir, err = l.source.containerDir(record.ID); err != nil {
		return nil, err
	}
	l.use(top, migrate.ContainerLayer)
	return container, nil
}

// containerDir is the directory of a container's own files, "" if it has none.
func (s *Source) containerDir(id string) (string, error) {
	name := s.driver + "-containers/" + id
	dir, err := s.root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return name, dir.Close()
}
