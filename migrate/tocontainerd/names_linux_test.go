package tocontainerd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/migrate"
)

const theName, theOtherName = "docker.io/library/app:1", "docker.io/library/app:latest"

// named is the image of the source that has names.
func (s *source) named() *migrate.Image {
	s.t.Helper()
	for i := range s.inv.Images {
		if len(s.inv.Images[i].Names) > 0 {
			return &s.inv.Images[i]
		}
	}
	s.t.Fatal("no image has a name")
	return nil
}

// TestUndoKeepsNamesOfOthers: "docker tag" copies labels, and a name can be given to another image.
func TestUndoKeepsNamesOfOthers(t *testing.T) {
	h := newHost(t)
	h.newSource(directories)
	target := h.target(h.options(Moby))
	h.run(target)
	ctx := h.in(Moby)
	tagged, err := target.images.Get(ctx, theName)
	require.NoError(t, err)
	tagged.Name = "docker.io/library/own:1"
	_, err = target.images.Create(ctx, tagged)
	require.NoError(t, err)
	other := h.blob(target, ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromString("other")}})
	_, err = target.images.Update(ctx, images.Image{Name: theOtherName, Target: other}, "target") // the labels stay
	require.NoError(t, err)

	_, err = h.migration(target).Undo(t.Context(), nil)
	require.NoError(t, err)
	h.collect()
	require.NoError(t, images.Walk(ctx, images.ChildrenHandler(target.content), tagged.Target))
	for name, want := range map[string]digest.Digest{tagged.Name: tagged.Target.Digest, theOtherName: other.Digest} {
		there, err := target.images.Get(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, want, there.Target.Digest)
	}
	_, err = target.images.Get(ctx, theName)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestUndoRemovesReferences: in each namespace that it looks at, containerd's plugin for Kubernetes gives an image a name more. It
// goes with the last of the others, and stays if it is another image's.
func TestUndoRemovesReferences(t *testing.T) {
	const namespace = "k8s.io"
	for name, c := range map[string]struct {
		tagged, foreign bool
	}{"no other name": {}, "another name": {tagged: true}, "another manifest": {foreign: true}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			s := h.newSource(directories)
			target := h.target(h.options(namespace))
			empty := h.state(namespace)
			h.run(target)
			ctx := h.in(namespace)
			for i := range s.inv.Images {
				image := &s.inv.Images[i]
				manifest, err := target.manifestOf(ctx, image.ID)
				require.NoError(t, err)
				if c.foreign {
					manifest = h.blob(target, ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromString("other")}})
				}
				reference := images.Image{Name: image.ID.String(), Target: manifest, Labels: map[string]string{criLabel: criManaged}}
				_, err = target.images.Create(ctx, reference)
				require.NoError(t, err)
				if c.tagged {
					reference.Name = "example.org/tagged:" + image.ID.Encoded()
					_, err = target.images.Create(ctx, reference)
					require.NoError(t, err)
				}
			}
			_, err := h.migration(target).Undo(t.Context(), nil)
			requireNoProblem(t, err)
			left, err := target.images.List(ctx)
			require.NoError(t, err)
			switch {
			case c.tagged:
				assert.Len(t, left, 2*len(s.inv.Images))
			case c.foreign:
				assert.Len(t, left, len(s.inv.Images))
			default:
				assert.Empty(t, left)
				assert.Equal(t, empty, h.state(namespace))
			}
		})
	}
}

// TestUndoGivesReferenceBack: the user has pulled the same image under another name, by another manifest. The migration's own
// manifest has taken the name that containerd's plugin for Kubernetes adds, and Undo gives it back. If the user pulls the image while
// Undo looks, the name is the user's too.
func TestUndoGivesReferenceBack(t *testing.T) {
	for _, during := range []bool{false, true} {
		t.Run(fmt.Sprintf("pulled during undo %t", during), func(t *testing.T) { testUndoGivesReferenceBack(t, during) })
	}
}

func testUndoGivesReferenceBack(t *testing.T, during bool) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options("k8s.io"))
	h.run(target)
	ctx := h.in("k8s.io")
	image, managed := s.named(), map[string]string{criLabel: criManaged}
	made, err := target.manifestOf(ctx, image.ID)
	require.NoError(t, err)
	_, err = target.images.Create(ctx, images.Image{Name: image.ID.String(), Target: made, Labels: managed})
	require.NoError(t, err)
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: image.ID, Size: int64(len(image.Config))}
	manifest := h.blob(target, ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
	own := images.Image{Name: "example.org/own:1", Target: manifest, Labels: managed}
	store := target.images
	if during {
		target.images = &pullingStore{Store: store, pull: func() {
			_, err := store.Create(ctx, own)
			require.NoError(t, err)
			_, err = store.Update(ctx, images.Image{Name: image.ID.String(), Target: manifest}, "target")
			require.NoError(t, err)
		}}
	} else {
		_, err = store.Create(ctx, own)
		require.NoError(t, err)
	}
	_, err = h.migration(target).Undo(t.Context(), nil)
	requireNoProblem(t, err)
	for _, name := range []string{own.Name, image.ID.String()} {
		there, err := store.Get(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, manifest.Digest, there.Target.Digest)
	}
}

// pullingStore calls pull before the first deletion of a reference.
type pullingStore struct {
	images.Store
	pull func()
}

func (s *pullingStore) Delete(ctx context.Context, name string, opts ...images.DeleteOpt) error {
	if s.pull != nil && digest.Digest(name).Validate() == nil {
		s.pull()
		s.pull = nil
	}
	return s.Store.Delete(ctx, name, opts...)
}

// TestNameBefore: an image that had the name before the migration keeps it after Undo.
func TestNameBefore(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	first := h.target(h.options(Moby))
	h.run(first)
	ctx := h.in(Moby)
	record, err := first.images.Get(ctx, theName)
	require.NoError(t, err)
	record.Labels = maps.Clone(record.Labels)
	delete(record.Labels, TagLabel) // the user has pushed it and pulled it again
	delete(record.Labels, ImageLabel)
	_, err = first.images.Update(ctx, record, "labels")
	require.NoError(t, err)
	require.NoError(t, first.MakeImage(t.Context(), s.named()))
	_, err = h.migration(first).Undo(t.Context(), nil)
	require.NoError(t, err)
	_, err = first.images.Get(ctx, theName)
	require.NoError(t, err)
}

// blob stores JSON, which stays.
func (h *host) blob(t *Target, mediaType string, v any) ocispec.Descriptor {
	h.t.Helper()
	data, err := json.Marshal(v)
	require.NoError(h.t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	labels := content.WithLabels(map[string]string{rootLabel: "test"})
	require.NoError(h.t, content.WriteBlob(h.in(t.opts.Namespace), t.content, desc.Digest.String(), bytes.NewReader(data), desc, labels))
	return desc
}

// TestSameImage: an image that containerd has under the name by another manifest is no clash. It keeps the name, and the
// containers get the manifest that was made.
func TestSameImage(t *testing.T) {
	h := newHost(t)
	s := h.newSource(directories)
	target := h.target(h.options(Moby))
	ctx := h.in(Moby)
	image := s.named()
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: image.ID, Size: int64(len(image.Config))}
	manifest := h.blob(target, ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config})
	absent := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 1}
	index := h.blob(target, ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{absent, manifest}})
	for name, desc := range map[string]ocispec.Descriptor{theName: index, theOtherName: manifest} {
		_, err := target.images.Create(ctx, images.Image{Name: name, Target: desc})
		require.NoError(t, err)
	}
	h.run(target)
	h.collect()
	_, err := h.migration(h.target(target.opts)).Verify(t.Context(), nil)
	requireNoProblem(t, err)
	made, err := target.manifestOf(ctx, image.ID)
	require.NoError(t, err)
	dangling, err := target.images.Get(ctx, untaggedName+made.Digest.String())
	require.NoError(t, err)
	assert.Equal(t, made.Digest, dangling.Target.Digest)

	_, err = h.migration(target).Undo(t.Context(), nil)
	requireNoProblem(t, err)
	list, err := target.images.List(ctx)
	require.NoError(t, err)
	require.Len(t, list, 2)
	there, err := target.images.Get(ctx, theName)
	require.NoError(t, err)
	assert.Equal(t, index.Digest, there.Target.Digest)

	foreign := h.blob(target, ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromString("x")}})
	_, err = target.images.Update(ctx, images.Image{Name: theName, Target: foreign}, "target")
	require.NoError(t, err)
	err = target.Check(t.Context(), s, &s.inv)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assert.ErrorContains(t, err, "docker rmi "+theName)
}

// TestUndoKeepsConfigurations: a container whose driver is no longer ours keeps its configuration: the files that were kept are
// older.
func TestUndoKeepsConfigurations(t *testing.T) {
	for name, ours := range map[string]bool{"another driver": false, "ours": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.newSource(directories)
			target := h.target(h.options(Moby))
			dir := filepath.Join(h.dockerRoot(), containersDir, theContainer)
			before := readAll(t, dir)
			h.run(target)
			if !ours {
				// The user has put back a backup and used the old engine.
				require.NoError(t, os.WriteFile(filepath.Join(dir, configName), []byte(`{"Driver":"overlay2","Name":"/renamed"}`), 0o600))
			}
			since := readAll(t, dir)
			_, err := h.migration(target).Undo(t.Context(), nil)
			require.NoError(t, err)
			if ours {
				since = before
			}
			assert.Equal(t, since, readAll(t, dir))
		})
	}
}
