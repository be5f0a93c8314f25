package configedit

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSetTOML(t *testing.T) {
	worker := []string{"worker", "containerd", "snapshotter"}
	for name, c := range map[string]struct {
		path         []string
		before, want string
	}{
		"empty":          {worker[2:], "", "snapshotter = \"new\"\n"},
		"empty, table":   {worker, "", "[worker.containerd]\n  snapshotter = \"new\"\n"},
		"replaced":       {worker[2:], "a = 1\nsnapshotter='old' # why\nb=2\n", "a = 1\nsnapshotter=\"new\" # why\nb=2\n"},
		"after version":  {worker[2:], "version = 2 # two\nroot = '/x'\n", "version = 2 # two\nsnapshotter = \"new\"\nroot = '/x'\n"},
		"after the last": {worker[2:], "a = 1\n\n[t]\nb = 1\n", "a = 1\nsnapshotter = \"new\"\n\n[t]\nb = 1\n"},
		"no end of line": {worker[2:], "a = 1", "a = 1\nsnapshotter = \"new\"\n"},
		"no key before the tables": {worker[2:], "# licence\n\n# about t\n[t]\nb = 1\n",
			"# licence\n\nsnapshotter = \"new\"\n# about t\n[t]\nb = 1\n"},
		"comments only": {worker[2:], "# nothing\n", "# nothing\nsnapshotter = \"new\"\n"},
		"in its table": {worker, "[worker]\n  [worker.containerd] # here\n    address = 'x'\n\n[other]\n",
			"[worker]\n  [worker.containerd] # here\n    address = 'x'\n    snapshotter = \"new\"\n\n[other]\n"},
		"in an empty table": {worker, "[worker.containerd]\n# later\n", "[worker.containerd]\n  snapshotter = \"new\"\n# later\n"},
		"replaced in its table": {worker, "[worker.\"containerd\"]\n snapshotter = '''\nold'''\n",
			"[worker.\"containerd\"]\n snapshotter = \"new\"\n"},
		"dotted": {worker, "worker.containerd.address = 'x'\n[t]\n",
			"worker.containerd.address = 'x'\nworker.containerd.snapshotter = \"new\"\n[t]\n"},
		"dotted below a table": {worker, "[worker]\n\tcontainerd.address = 'x'\n",
			"[worker]\n\tcontainerd.address = 'x'\n\tcontainerd.snapshotter = \"new\"\n"},
		"another table, dotted": {worker, "[worker]\noci.enabled = true", "[worker]\noci.enabled = true\n\n[worker.containerd]\n  snapshotter = \"new\"\n"},
		"Windows":               {worker[2:], "version = 2\r\n[t]\r\n", "version = 2\r\nsnapshotter = \"new\"\r\n[t]\r\n"},
		"in an inline table":    {worker, "worker = {containerd = {snapshotter = 'old'}}\n", ""},
		"a table in line":       {worker, "[worker]\ncontainerd = {address = 'x'}\n", ""},
		"array of tables":       {worker, "[[worker.containerd]]\nsnapshotter = 'old'\n", ""},
		"no table":              {worker, "worker = 1\n", ""},
		"no TOML":               {worker, "a = \n", ""},
		"twice":                 {worker, "a = 1\na = 2\n", ""},
		"table twice":           {worker, "[worker.containerd]\n[worker.containerd]\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := SetTOML([]byte(c.before), c.path, "new")
			if c.want == "" {
				var refused *Error
				require.ErrorAs(t, err, &refused, "%s", got)
				assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, string(got))
			again, err := SetTOML(got, c.path, "new")
			require.NoError(t, err)
			assert.Equal(t, c.want, string(again))
		})
	}
	got, err := SetTOML([]byte("[worker.oci]\nenabled = true\n"), []string{"worker", "oci", "enabled"}, false)
	require.NoError(t, err)
	assert.Equal(t, "[worker.oci]\nenabled = false\n", string(got))
	for _, composite := range []string{"snapshotter = []", "[snapshotter]", "[[snapshotter]]", "snapshotter = {a = 1}", "snapshotter.a = 1"} {
		_, err := SetTOML([]byte(composite), []string{"snapshotter"}, "new")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, composite)
	}
	_, err = ParseTOML([]byte("a = 1\nb = \n"))
	assert.ErrorContains(t, err, "line 2, column")
}

func TestAppendTOML(t *testing.T) {
	for name, c := range map[string]struct{ before, want string }{
		"not there":      {"version = 3\n[plugins]\n", "version = 3\nimports = [\"new\"]\n[plugins]\n"},
		"empty":          {"imports = [ ] # none\n", "imports = [\"new\"] # none\n"},
		"one":            {"imports = ['a']\n", "imports = ['a', \"new\"]\n"},
		"trailing comma": {"imports = ['a', ]\n", "imports = ['a', \"new\", ]\n"},
		"lines":          {"imports = [\n  'a', # the first\n  'b' # it, too\n]\n", "imports = [\n  'a', # the first\n  'b', # it, too\n  \"new\"\n]\n"},
		"lines, trailing comma": {"imports = [\n\t'a',\n\t'b', # b, c\n\t# end\n]\n",
			"imports = [\n\t'a',\n\t'b', # b, c\n\t\"new\",\n\t# end\n]\n"},
		"comma below":      {"imports = [\n  'a' # one\n  , 'b' # two\n  ,\n]\n", "imports = [\n  'a' # one\n  , 'b' # two\n  ,\n  \"new\",\n]\n"},
		"closed on a line": {"imports = [\n  'a',\n  'b']\n", "imports = [\n  'a',\n  'b', \"new\"]\n"},
		"comment only":     {"imports = [\n  # none\n]\n", "imports = [\n  # none\n\"new\"]\n"},
		"a string":         {"imports = 'a'\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := AppendTOML([]byte(c.before), []string{"imports"}, "new")
			if c.want == "" {
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, string(got))
		})
	}
}

func TestSetJSON(t *testing.T) {
	feature := []string{"features", "store"}
	for name, c := range map[string]struct {
		path         []string
		value        any
		before, want string
	}{
		"nothing":         {feature, true, "", "{\n  \"features\": {\n    \"store\": true\n  }\n}\n"},
		"empty":           {feature[1:], "new", "{}", "{\n  \"store\": \"new\"\n}"},
		"order":           {feature[1:], "new", "{\n\t\"z\": 1.50,\n\t\"a\": [ ]\n}\n", "{\n\t\"z\": 1.50,\n\t\"a\": [ ],\n\t\"store\": \"new\"\n}\n"},
		"replaced":        {feature[1:], "new", "{\"store\" : \"old\", \"b\":2}", "{\"store\" : \"new\", \"b\":2}"},
		"one line":        {feature, true, "{\"a\":1}", "{\"a\":1, \"features\":{\"store\":true}}"},
		"its object":      {feature, true, "{\n    \"features\": {\n        \"x\": false\n    }\n}", "{\n    \"features\": {\n        \"x\": false,\n        \"store\": true\n    }\n}"},
		"object in line":  {feature, true, "{\n  \"features\": {\"x\": false}\n}", "{\n  \"features\": {\"x\": false, \"store\": true}\n}"},
		"empty object":    {feature, true, "{\n  \"features\": {}\n}", "{\n  \"features\": {\n    \"store\": true\n  }\n}"},
		"empty, lines":    {feature[1:], "new", "{ \n\n }", "{\n  \"store\": \"new\"\n\n }"},
		"lines within":    {feature, true, "{\"features\": {\r\n}\r\n}", "{\"features\": {\r\n    \"store\": true\r\n}\r\n}"},
		"off":             {feature, true, "{\"features\": {\"store\": false}}", "{\"features\": {\"store\": true}}"},
		"Windows":         {feature[1:], "new", "{\r\n  \"a\": 1\r\n}\r\n", "{\r\n  \"a\": 1,\r\n  \"store\": \"new\"\r\n}\r\n"},
		"no object":       {feature, true, "{\"features\": []}", ""},
		"value an object": {feature, true, "{\"features\": {\"store\": {\n}}}", ""},
		"value a list":    {feature[1:], "new", "{\"store\": [\n1]}", ""},
		"list":            {feature, true, "[]", ""},
		"null":            {feature, true, "null", ""},
		"twice":           {feature, true, "{\"a\": 1, \"a\": 2}", ""},
		"twice, letters":  {feature, true, "{\"a\": {\"B\": 1, \"b\": 2}}", ""},
		"other letters":   {feature, true, "{\"Features\": {}}", ""},
		"comment":         {feature, true, "{ // a\n}", ""},
		"two":             {feature, true, "{}{}", ""},
		"byte order":      {feature, true, "\xef\xbb\xbf{}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := SetJSON([]byte(c.before), c.path, c.value)
			if c.want == "" {
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "%s", got)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, string(got))
			again, err := SetJSON(got, c.path, c.value)
			require.NoError(t, err)
			assert.Equal(t, c.want, string(again))
		})
	}
}

// requireOnlyAdded checks that each line of before is still there, in this order, except for a line that may be
// replaced.
func requireOnlyAdded(t *testing.T, before, after []byte) {
	t.Helper()
	rest := strings.Split(string(after), "\n")
	changed := 0
	for line := range strings.SplitSeq(string(before), "\n") {
		at := 0
		for at < len(rest) && rest[at] != line {
			at++
		}
		if at == len(rest) {
			changed++
			continue
		}
		rest = rest[at+1:]
	}
	require.LessOrEqual(t, changed, 1, "%q became %q", before, after)
}

func FuzzTOML(f *testing.F) {
	for _, seed := range []string{
		"", "version = 3\nimports = ['a', # x\n 'b',\n]\n[worker.containerd]\n a = 1\n", "[[worker]]\n[worker.containerd]\nsnapshotter='x'\n",
		"worker = {containerd = {}}", "worker.containerd.x = 1\r\n[t]\r\n", "imports = [\n]\n[worker]\ncontainerd.a=[[1],[2]]", "snapshotter = \"\"\"\n\n\"\"\"\n#",
		"imports = [{a=1}, 'x']", "\"imports\" = []\n\"worker\".'containerd'.b = 1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		original := bytes.Clone(text)
		for _, edit := range []struct {
			path []string
			do   func(path []string) ([]byte, error)
		}{
			{[]string{"snapshotter"}, func(path []string) ([]byte, error) { return SetTOML(text, path, "new") }},
			{[]string{"worker", "containerd", "snapshotter"}, func(path []string) ([]byte, error) { return SetTOML(text, path, "new") }},
			{[]string{"worker", "containerd", "enabled"}, func(path []string) ([]byte, error) { return SetTOML(text, path, true) }},
			{[]string{"imports"}, func(path []string) ([]byte, error) { return AppendTOML(text, path, "new") }},
		} {
			after, err := edit.do(edit.path)
			require.Equal(t, original, text)
			if err != nil {
				continue
			}
			before, err := ParseTOML(text)
			require.NoError(t, err)
			changed, err := ParseTOML(after)
			require.NoError(t, err)
			value, ok := get(changed, edit.path)
			require.True(t, ok)
			require.NoError(t, check(before, changed, edit.path, value))
		}
	})
}

func FuzzJSON(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "{\n \"features\" : {\n}\n}", "{\"a\":[{\"b\":1,\"c\":null}],\"features\":{\"x\":true}}", "{\"f\\u0065atures\":{}}", "[1]",
		"{\"features\" : {}\n\n} ",
		"{\"storage-driver\":[\n\n]}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		original := bytes.Clone(text)
		for _, path := range [][]string{{"storage-driver"}, {"features", "store"}} {
			after, err := SetJSON(text, path, "new")
			require.Equal(t, original, text)
			if err != nil {
				continue
			}
			before, err := ParseJSON(text)
			require.NoError(t, err)
			changed, err := ParseJSON(after)
			require.NoError(t, err)
			require.NoError(t, check(before, changed, path, "new"))
			requireOnlyAdded(t, bytes.TrimSpace(text), bytes.TrimSpace(after))
		}
	})
}
