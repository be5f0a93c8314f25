package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestRoundTrips: each tool loads Cowshed's exports, and images of other tools, under the same name and with the same
// digests. Cowshed imports the tool's saved images as the same images.
func TestRoundTrips(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	registryAddress := h.StartRegistry()
	environment := environments(t, h)
	first := newStore(t, h, "first")
	var all []ready
	for _, c := range cases {
		all = append(all, c.prepare(t, first, registryAddress))
	}
	t.Run("tools", func(t *testing.T) {
		for _, tool := range tools {
			t.Run(tool.name, func(t *testing.T) {
				t.Parallel()
				require.Contains(t, environment, tool.name)
				trip := trip{
					tool: tool, env: environment[tool.name], dir: tempDir(t), store: newStore(t, h, tool.name),
					repository: registryAddress + "/" + tool.name,
				}
				for _, r := range all {
					trip.goRound(t, r)
				}
			})
		}
	})
}

// trip is a tool that images go to and come back from.
type trip struct {
	tool       tool
	env        []string
	dir        string // for files
	store      store  // that images come back to
	repository string
}

// goRound has the tool load an image in each format that it reads, and the first time save it in each that it writes.
func (tr *trip) goRound(t *testing.T, r ready) {
	saved := false
	pushed := r.pushed || testfs.Long()
	for _, f := range formats {
		p, there := r.places[f]
		script, reads := tr.tool.load[f]
		if !there || !reads || f == registry && saved && !pushed {
			continue
		}
		t.Run(r.name+"/load "+string(f), func(t *testing.T) {
			env := tr.environment(t, r, p)
			if out, err := tr.run(t, env, script); !tr.able(t, "load", f, r, out, err) {
				return
			}
			loaded := tr.loaded(t, env, r, f, p)
			for _, to := range formats {
				if script, writes := tr.tool.save[to]; writes && !saved && (to != registry || pushed) {
					t.Run("save "+string(to), func(t *testing.T) { tr.back(t, env, script, r, to, loaded, p) })
				}
			}
			saved = true
			_, err := tr.run(t, env, tr.tool.clear)
			require.NoError(t, err)
		})
	}
}

// environment has the variables of scripts.
func (tr *trip) environment(t *testing.T, r ready, p place) []string {
	var name, tag string
	var tags []string
	for _, n := range p.names {
		tags = append(tags, tagOf(n))
	}
	if len(tags) > 0 {
		name, tag = p.names[0], tags[0]
	}
	return append(slices.Concat(os.Environ(), tr.env),
		"TMPDIR="+tr.dir, "STORE="+filepath.Join(tempDir(t), "store"),
		"FROM="+p.from, "NAME="+name, "NAMES="+strings.Join(p.names, " "),
		"TAG="+tag, "TAGS="+strings.Join(tags, " "), "REPOSITORY="+strings.TrimSuffix(name, ":"+tag))
}

// run runs a script and returns its output.
func (tr *trip) run(t *testing.T, env []string, script string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euc", "set -o pipefail\n"+script)
	cmd.Env, cmd.Dir = env, tr.dir
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s\n%s", err, script, stderr.String())
	}
	return out.String(), nil
}

// able says whether a tool has done something, and fails the test if it should have, or if the table says that it cannot.
func (tr *trip) able(t *testing.T, action string, f format, r ready, out string, err error) bool {
	reason := lookUp(tr.tool.unable, action, f, r)
	if reason == "" {
		require.NoError(t, err, out)
		return true
	}
	require.Error(t, err, "it can, while the table says that it cannot: %s", reason)
	t.Logf("%s: it cannot: %s", tr.tool.name, reason)
	return false
}

// lookUp finds the reason in a table of a tool.
func lookUp(table map[string]string, action string, f format, r ready) string {
	for _, key := range []string{string(f) + " " + r.name, "* " + r.name, string(f) + " *"} {
		if reason := table[action+" "+key]; reason != "" {
			return reason
		}
	}
	return ""
}

// loaded checks the tool's image after it has loaded it, and returns the digest that it has for it.
func (tr *trip) loaded(t *testing.T, env []string, r ready, f format, p place) (id string) {
	out, err := tr.run(t, env, tr.tool.show)
	require.NoError(t, err)
	var ids, names []string
	var layers []digest.Digest
	words := strings.Fields(out)
	for i := 0; i+1 < len(words); i += 2 {
		switch value := words[i+1]; words[i] {
		case "id":
			ids = append(ids, "sha256:"+strings.TrimPrefix(value, "sha256:"))
		case "layer":
			layers = append(layers, digest.Digest(value))
		case "name":
			if name, err := reference.ParseDockerRef(value); err == nil && !strings.Contains(value, "@") {
				names = append(names, name.String())
			}
		}
	}
	id = r.ID.String()
	if tr.tool.target {
		id = p.target.String()
	}
	require.Positive(t, len(ids)+len(layers), "what %s has: %s", tr.tool.name, out)
	if ids != nil {
		assert.Contains(t, ids, id, "its digest in %s", tr.tool.name)
	}
	if layers != nil {
		assert.Equal(t, r.DiffIDs, layers, "its diff IDs in %s", tr.tool.name)
	}
	if lookUp(tr.tool.renames, "load", f, r) == "" {
		slices.Sort(names)
		assert.ElementsMatch(t, p.names, slices.Compact(names), "its names in %s", tr.tool.name)
	}
	return id
}

// back has the tool save the image, and Cowshed import it.
func (tr *trip) back(t *testing.T, env []string, script string, r ready, f format, id string, p place) {
	to := filepath.Join(tempDir(t), "saved")
	from := string(f) + ":" + to
	names := p.names
	if f == registry {
		to = tr.repository + "/" + r.name + ":1.2"
		from, names = "docker://"+to, []string{to}
	}
	out, err := tr.run(t, append(env, "TO="+to, "ID="+id), script)
	if !tr.able(t, "save", f, r, out, err) {
		return
	}
	if !slices.Contains(tr.tool.keepsNames, f) && len(names) > 1 {
		names = names[:1]
	}
	got, err := tr.store.load(from)
	require.NoError(t, err)
	assert.Equal(t, r.ID, got.ID, "its ID")
	assert.Equal(t, r.DiffIDs, got.DiffIDs, "its diff IDs")
	assert.Equal(t, r.tree, got.tree, "its tree")
	if len(names) > 0 {
		assert.Contains(t, names, got.Name, "its name")
	}
	require.NoError(t, tr.store.remove(got.Name))
	if r.otherID != "" && slices.Contains(tr.tool.keepsPlatforms, f) {
		other, err := tr.store.load(from, "--platform=linux/"+otherArchitecture())
		require.NoError(t, err)
		assert.Equal(t, r.otherID, other.ID, "its ID for another platform")
		require.NoError(t, tr.store.remove(other.Name))
	}
	if len(names) < 2 {
		return
	}
	for _, name := range names {
		also, err := tr.store.load(from + ":" + name)
		require.NoError(t, err)
		assert.Equal(t, name, also.Name, "its name, asked for")
		require.NoError(t, tr.store.remove(also.Name))
	}
}
