package main

import (
	"path/filepath"
	"slices"
	"testing"
)

// commands returns the names of uses, sorted, and those that only a run tells in backquotes.
func commands(uses []use) []string {
	var names []string
	for _, u := range uses {
		name := u.command
		if name == "" {
			name = "`" + u.expr + "`"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func assertEqual(t *testing.T, want, got []string) {
	t.Helper()
	if !slices.Equal(want, got) {
		t.Errorf("got %q,\nnot %q", got, want)
	}
}

func TestGo(t *testing.T) {
	tree, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	uses, err := packageUses(tree, tree, "./testdata/programs")
	if err != nil {
		t.Fatal(err)
	}
	assertEqual(t, []string{
		"`unknown()`", "alternative-1", "alternative-2", "from-constant", "in-list", "in-list-too",
		"in-script-1", "in-script-2", "in-script-3", "in-script-4", "literal", "looked-up", "prepare", "sh",
		"through-helper", "through-variadic",
	}, commands(uses))
	for _, u := range uses {
		if u.file != "testdata/programs/programs.go" || u.line == 0 {
			t.Errorf("%s is at %s", u.command, u)
		}
	}
}

func TestShell(t *testing.T) {
	for script, want := range map[string][]string{
		`a | b && c; d "$(e)" <(f) & wait`:                       {"a", "b", "c", "d", "e", "f"},
		`own() { a; }; own; [[ -n x ]] || exit 1`:                {"a"},
		`x=$(a) b; ./c; "$d" e; cd /`:                            {"a", "b"},
		`exec env -u X A=b nice -n 10 a; command -v b`:           {"a", "b", "env", "nice"},
		`if a; then b; else c; fi; for x in y; do d; done`:       {"a", "b", "c", "d"},
		`sh -ec 'a; b' x; bash -c "c"`:                           {"a", "b", "bash", "c", "sh"},
		`step() { "$@"; }; step 'a name' a; step 'b' env X=1 c`:  {"a", "c", "env"},
		"cat <<'END'\nnot-a-command\nEND\ncase x in a) b;; esac": {"b", "cat"},
	} {
		uses, err := shellUses("script", 1, script)
		if err != nil {
			t.Fatalf("%s: %v", script, err)
		}
		t.Run(script, func(t *testing.T) { assertEqual(t, want, commands(uses)) })
	}
}

func TestMakefile(t *testing.T) {
	uses := makefileUses("Makefile", "X := $(shell not-in-a-recipe)\n\na: b ## text\n\t@c $$(d) \\\n\t\t&& e\n\t$(TOOL) run\n")
	assertEqual(t, []string{"c", "d", "e"}, commands(uses))
	if u := uses[0]; u.line != 4 {
		t.Errorf("%s is at %s", u.command, u)
	}
}

func TestKnown(t *testing.T) {
	k, err := parseKnown("# comment\n\na dir/** why\n* file because\n`x()` ** so\nnever * used\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []use{{command: "a", file: "dir/below/file"}, {command: "b", file: "file"}, {expr: "x( )", file: "y"}} {
		if !k.covers(u) {
			t.Errorf("%+v is not covered", u)
		}
	}
	for _, u := range []use{{command: "a", file: "file2"}, {command: "b", file: "dir/file"}, {expr: "y()", file: "y"}} {
		if k.covers(u) {
			t.Errorf("%+v is covered", u)
		}
	}
	assertEqual(t, []string{"never * used"}, k.unused())
	if _, err := parseKnown("a *"); err == nil {
		t.Error("a line without a reason is no error")
	}
}
