package images

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// store is a store of Cowshed, used through the command.
type store struct {
	t       testing.TB
	program string
	root    string
}

func newStore(t testing.TB, h *harness.Host, name string) store {
	t.Helper()
	s := store{t, h.CowshedProgram(), filepath.Join(h.Data, name)}
	_, err := s.run("init")
	require.NoError(t, err)
	return s
}

// run runs the command and returns its output.
func (s store) run(args ...string) ([]byte, error) {
	out, _, err := s.say(args...)
	return out, err
}

// say runs the command and returns its output, and its messages.
func (s store) say(args ...string) (out []byte, said string, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append([]string{"--root", s.root}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if out, err = cmd.Output(); err != nil {
		err = fmt.Errorf("cowshed %q: %w: %s", args, err, stderr.String())
	}
	return out, stderr.String(), err
}

// image is an image that Cowshed has imported.
type image struct {
	Name    string          `json:"name"`
	ID      digest.Digest   `json:"id"`
	DiffIDs []digest.Digest `json:"diffIDs"`
	Layers  []string        `json:"layers"` // that it has in the store
	tree    digest.Digest   // of the tar of all that is in it
}

// load imports an image.
func (s store) load(from string, flags ...string) (image, error) {
	out, err := s.run(append([]string{"import", "--json", "--insecure", from}, flags...)...)
	if err != nil {
		return image{}, err
	}
	var loaded image
	if err := json.Unmarshal(out, &loaded); err != nil {
		return image{}, err
	}
	tree, err := s.run("diff", "--whole", loaded.Layers[len(loaded.Layers)-1])
	loaded.tree = digest.FromBytes(tree)
	return loaded, err
}

// remove removes an image, with its layers.
func (s store) remove(name string) error {
	_, err := s.run("rmi", name)
	return err
}

// exported is Cowshed's description of its export.
type exported struct {
	Name     string        `json:"name"`
	Manifest digest.Digest `json:"manifest"`
	said     string
}

// save exports an image.
func (s store) save(name, to string, flags ...string) (exported, error) {
	out, said, err := s.say(append([]string{"export", "--json", "--insecure", "--exact", name, to}, flags...)...)
	if err != nil {
		return exported{}, err
	}
	e := exported{said: said}
	err = json.Unmarshal(out, &e)
	return e, err
}

// tagOf is the tag of a name.
func tagOf(name string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return ref.(reference.NamedTagged).Tag()
}
