package oldgraph

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

const (
	graphDir      = "graph"
	containersDir = "containers"
	imageLayer    = "layer" // in a directory of graphDir
	containerRW   = "rw"    // in a directory of containersDir

	maxEntries = 100_000
	maxRecord  = 4 << 20  // bytes
	maxNames   = 32 << 20 // bytes
	maxLayers  = 1000     // of an image; aufs allowed 127
)

// graph is the part of a root that its records describe.
type graph struct {
	root *rootdir.Dir
	// images and containers by ID, with those that cannot be moved.
	images     map[string]*image
	containers map[string]*container
	// isKnown reports whether an image that has no files here is somewhere else, to which images above may refer.
	isKnown func(id string) bool
}

// image is an image, which has one layer of its own.
type image struct {
	id     string
	record imageRecord
	json   []byte // the record as it is
	parent *image
	depth  int // number of images below
	size   int64
	// err says why the image cannot be moved: its own damage, or that of one below.
	err    error
	looked bool // parent, depth and err are set
}

// imageRecord is the part of a record that moving looks at.
type imageRecord struct {
	ID              string    `json:"id"`
	Parent          string    `json:"parent"`
	Comment         string    `json:"comment"`
	Created         time.Time `json:"created"`
	Author          string    `json:"author"`
	ContainerConfig struct {
		Cmd []string `json:"Cmd"`
	} `json:"container_config"`
}

type container struct {
	id     string
	record containerRecord
	err    error
}

type containerRecord struct {
	Image string `json:"Image"`
	Name  string `json:"Name"`
	State struct {
		Running bool `json:"Running"`
	} `json:"State"`
}

// readGraph reads the records of all images and containers that have files.
func readGraph(root *rootdir.Dir) (*graph, error) {
	g := &graph{root: root, isKnown: func(string) bool { return false }}
	return g, g.read(g.has)
}

// read reads the records of the entries for which include is true or returns an error.
func (g *graph) read(include func(dir, id, files string) (bool, error)) error {
	g.images, g.containers = map[string]*image{}, map[string]*container{}
	ids, err := g.list(graphDir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if there, err := include(graphDir, id, imageLayer); there || err != nil {
			g.images[id] = g.readImage(id, err)
		}
	}
	if ids, err = g.list(containersDir); err != nil {
		return err
	}
	for _, id := range ids {
		if there, err := include(containersDir, id, containerRW); there || err != nil {
			g.containers[id] = g.readContainer(id, err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(g.images)) {
		g.resolve(g.images[id])
	}
	return nil
}

// list lists the entries of a directory whose names can be IDs. Docker has others there, such as ":tmp:".
func (g *graph) list(dir string) ([]string, error) {
	names, err := g.root.List(dir, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return slices.DeleteFunc(names, func(name string) bool { return cowcommon.CheckID(name) != nil }), err
}

// has reports whether an entry has a directory of files.
func (g *graph) has(dir, id, files string) (bool, error) {
	opened, err := g.root.OpenDir(dir + "/" + id + "/" + files)
	if err == nil {
		return true, opened.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) && g.isDir(dir+"/"+id) {
		return false, err
	}
	return false, nil
}

func (g *graph) isDir(name string) bool {
	opened, err := g.root.OpenDir(name)
	return err == nil && opened.Close() == nil
}

func (g *graph) readImage(id string, err error) *image {
	i := &image{id: id, size: -1, err: err}
	if err != nil {
		return i
	}
	i.json, i.err = g.root.ReadFile(graphDir+"/"+id+"/json", maxRecord)
	if i.err != nil {
		return i
	}
	if i.record, i.err = parseImage(i.json, id); i.err != nil {
		return i
	}
	if text, err := g.root.ReadFile(graphDir+"/"+id+"/layersize", 64); err == nil {
		if size, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && size >= 0 {
			i.size = size
		}
	}
	return i
}

// parseImage reads the record of an image of that ID.
func parseImage(data []byte, id string) (record imageRecord, err error) {
	if err := json.Unmarshal(data, &record); err != nil {
		return record, fault.New(errdefs.ErrDataLoss, "its record: %w", err)
	}
	if record.ID != id {
		return record, fault.New(errdefs.ErrDataLoss, "its record belongs to image %.100q", record.ID)
	}
	if record.Parent != "" && cowcommon.CheckID(record.Parent) != nil {
		return record, fault.New(errdefs.ErrDataLoss, "its record has a parent that is no ID: %.100q", record.Parent)
	}
	return record, nil
}

func (g *graph) readContainer(id string, err error) *container {
	c := &container{id: id, err: err}
	if err != nil {
		return c
	}
	data, err := g.root.ReadFile(containersDir+"/"+id+"/config.json", maxRecord)
	if err == nil {
		c.record, err = parseContainer(data)
	}
	c.err = err
	return c
}

func parseContainer(data []byte) (record containerRecord, err error) {
	if err := json.Unmarshal(data, &record); err != nil {
		return record, fault.New(errdefs.ErrDataLoss, "its record: %w", err)
	}
	if record.Image != "" && cowcommon.CheckID(record.Image) != nil {
		return record, fault.New(errdefs.ErrDataLoss, "its record has an image that is no ID: %.100q", record.Image)
	}
	return record, nil
}

// resolve finds the images below an image.
func (g *graph) resolve(top *image) {
	var path []*image
	onPath := map[*image]bool{}
	for at := top; at != nil && !at.looked; at = g.images[at.record.Parent] {
		if onPath[at] {
			at.looked, at.err = true, fault.New(errdefs.ErrDataLoss, "image %q is below itself", at.id)
			break
		}
		onPath[at] = true
		path = append(path, at)
	}
	for _, at := range slices.Backward(path) {
		if at.looked {
			continue
		}
		at.looked = true
		if at.err != nil || at.record.Parent == "" {
			continue
		}
		at.parent = g.images[at.record.Parent]
		switch {
		case at.parent == nil && g.isKnown(at.record.Parent):
		case at.parent == nil:
			at.err = fault.New(errdefs.ErrNotFound, "the image below it, %q, has no files in the root", at.record.Parent)
		case at.parent.err != nil:
			at.err = fault.Wrap("the image below", at.parent.id, at.parent.err)
		default:
			if at.depth = at.parent.depth + 1; at.depth >= maxLayers {
				at.err = fault.New(errdefs.ErrResourceExhausted, "it is above more than %d others", maxLayers-1)
			}
		}
	}
}

// parentsFirst lists the images.
func (g *graph) parentsFirst() []*image {
	list := slices.Collect(maps.Values(g.images))
	slices.SortFunc(list, func(a, b *image) int {
		if a.depth != b.depth {
			return a.depth - b.depth
		}
		return strings.Compare(a.id, b.id)
	})
	return list
}

// readNames reads the names of images: by repository and tag, the ID of an image.
func readNames(root *rootdir.Dir) (map[string]map[string]string, error) {
	for _, file := range []string{"repositories", "repositories.json"} {
		data, err := root.ReadFile(file, maxNames)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names, err := parseNames(data)
		return names, fault.Wrap("read", root.Join(file), err)
	}
	return nil, nil
}

func parseNames(data []byte) (map[string]map[string]string, error) {
	var file struct {
		Repositories map[string]map[string]string
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fault.As(errdefs.ErrDataLoss, err)
	}
	return file.Repositories, nil
}
