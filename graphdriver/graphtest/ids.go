//go:build linux

package graphtest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
)

var idTests = []Test{
	{"IDsThatCannotBe", idsThatCannotBe},
	{"IDsThatMustBe", idsThatMustBe},
	{"IDsBetween", idsBetween},
	{"AbsentIDs", absentIDs},
}

// idsThatCannotBe: no method takes an id that is not a plain name, and none looks or changes anything where
// such an id would lead. The ids lead to nothing but the layer of the test, or a driver that follows them
// would do harm.
func idsThatCannotBe(t testing.TB, c Config) {
	l := c.open(t)
	victim := l.filled("", someContent)
	want := l.scan(victim)

	for _, id := range []string{
		"", ".", "..", "/", "../x", "../../x", "a/b", "/absent", "a/", "./a", "a\x00b", "\x00",
		"../" + victim, "./" + victim, victim + "/", victim + "/.", victim + "/..", victim + "/etc", victim + "/new",
		"x/../" + victim, "../../subvolumes/" + victim, victim + "\x00",
		strings.Repeat("a", 256), strings.Repeat("a", 300), strings.Repeat("a/", 150), strings.Repeat("../", 50) + newID(),
	} {
		refused := func(err error, method string) {
			t.Helper()
			assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%s of %q", method, id)
		}
		for _, creator := range creators(l.Driver) {
			refused(creator.create(id, "", nil), creator.name)
			refused(creator.create(id, victim, nil), creator.name)
			if id != "" {
				child := newID()
				refused(creator.create(child, id, nil), creator.name+" with parent")
				assert.False(t, l.Exists(child))
			}
		}
		assert.False(t, l.Exists(id), "Exists of %q", id)
		_, err := l.Get(id, "")
		refused(err, "Get")
		refused(l.Put(id), "Put")
		refused(l.Remove(id), "Remove")
		_, err = l.GetMetadata(id)
		refused(err, "GetMetadata")
		for name, err := range reads(l.Driver, id, "") {
			refused(err, name)
		}
		if id != "" {
			for name, err := range reads(l.Driver, victim, id) {
				refused(err, name+" with parent")
			}
		}
		_, err = l.ApplyDiff(id, "", bytes.NewReader(nil))
		refused(err, "ApplyDiff")
		if getter, ok := l.Driver.(graphdriver.DiffGetterDriver); ok {
			_, err := getter.DiffGetter(id)
			refused(err, "DiffGetter")
		}
	}
	assertSameTree(t, want, l.scan(victim), "the layer that ids led to")
}

// reads calls the methods that compare two layers and returns their errors by name.
func reads(d graphdriver.Driver, id, parent string) map[string]error {
	_, changes := d.Changes(id, parent)
	_, diff := readDiff(d, id, parent)
	_, size := d.DiffSize(id, parent)
	return map[string]error{"Changes": changes, "Diff": diff, "DiffSize": size}
}

// idsThatMustBe: every driver takes the ids that Docker makes, and those of the common set of characters.
func idsThatMustBe(t testing.TB, c Config) {
	l := c.open(t)
	hex := newID()
	for _, id := range []string{
		hex, hex + "-init", hex[:63], "Case", "case", "CASE", "a", "0", "abc", "abc-init", "ab", "a.b_c-d:e", "a..b", "x-",
		strings.Repeat("l", 128),
	} {
		require.NoError(t, l.Create(id, "", nil), "Create of %q", id)
		l.removeLater(id)
		l.edit(id, func(w tree) { w.file("id", id) })
		assert.True(t, l.Exists(id))
		dir := l.get(id)
		assert.FileExists(t, tree{dir: dir}.path("id"), "%q has its own tree", id)
		l.put(id)
	}
	require.NoError(t, l.Remove("abc"))
	assert.True(t, l.Exists("abc-init"), "removing abc left abc-init alone")
	assert.True(t, l.Exists("ab"))
	require.NoError(t, l.Remove("Case"))
	assert.True(t, l.Exists("case"), "ids that differ in case are different")
}

// idsBetween: ids that a driver may take or refuse are taken as they are, or refused without a trace.
func idsBetween(t testing.TB, c Config) {
	l := c.open(t)
	for _, id := range []string{
		"a\nb", "a b", "-rf", ".hidden", "~", "*", "a+b", "a@b", "a#b", "a%b", "\xff\xfe", "ä", "a\tb", "$(id)", "\\", "...",
		strings.Repeat("l", 255),
	} {
		if err := l.Create(id, "", nil); err != nil {
			assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "Create of %q", id)
			assert.False(t, l.Exists(id), "%q was refused", id)
			continue
		}
		l.removeLater(id)
		assert.True(t, l.Exists(id), "%q was created", id)
		l.edit(id, func(w tree) { w.file("f", "x") })
		assert.Equal(t, []string{"A /f"}, l.changes(id, ""), "%q", id)
	}
}

// absentIDs: methods say that there is no such layer, and make none.
func absentIDs(t testing.TB, c Config) {
	l := c.open(t)
	there := l.layer("")
	absent := newID()
	notFound := func(err error, what string) {
		t.Helper()
		assert.ErrorIs(t, err, errdefs.ErrNotFound, what)
	}
	assert.False(t, l.Exists(absent))
	_, err := l.Get(absent, "")
	notFound(err, "Get")
	_, err = l.GetMetadata(absent)
	notFound(err, "GetMetadata")
	for name, err := range reads(l.Driver, absent, "") {
		notFound(err, name)
	}
	for name, err := range reads(l.Driver, absent, there) {
		notFound(err, name)
	}
	for name, err := range reads(l.Driver, there, absent) {
		notFound(err, name+" with parent")
	}
	_, err = l.ApplyDiff(absent, "", bytes.NewReader(nil))
	notFound(err, "ApplyDiff")
	if getter, ok := l.Driver.(graphdriver.DiffGetterDriver); ok {
		_, err := getter.DiffGetter(absent)
		notFound(err, "DiffGetter")
	}
	assert.False(t, l.Exists(absent))
	require.NoError(t, l.Create(absent, "", nil), "the id is free")
	l.removeLater(absent)
}
