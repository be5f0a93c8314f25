package main

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/tools/go/packages"
)

// modules are the directories of the tree's modules.
var modules = []string{".", "bench", "e2e/daemons", "scripts/internal/commandcheck", "scripts/internal/apicontract", "scripts/internal/manifests", "scripts/internal/release"}

// goUses finds the programs and shell scripts that Go files give to os/exec. A value is followed from os/exec back
// through variables, parameters and fields to the constants that it can be.
func goUses(tree string) ([]use, error) {
	tree, err := filepath.Abs(tree)
	if err != nil {
		return nil, err
	}
	var uses []use
	for _, module := range modules {
		found, err := packageUses(tree, filepath.Join(tree, module), "./...")
		if err != nil {
			return nil, err
		}
		uses = append(uses, found...)
	}
	return uses, nil
}

// packageUses finds the commands that the packages of a pattern run, with their tests.
func packageUses(tree, dir, pattern string) ([]use, error) {
	found, err := packages.Load(&packages.Config{Dir: dir, Tests: true, Mode: packages.LoadSyntax}, pattern)
	if err != nil {
		return nil, err
	}
	var uses []use
	for _, p := range found {
		if len(p.Errors) > 0 {
			return nil, p.Errors[0]
		}
		f := newFlow(tree, p)
		f.follow()
		uses = append(uses, f.uses...)
	}
	return uses, nil
}

// source is a value that an object is given, of a variadic parameter the one at an index.
type source struct {
	ast.Expr
	index int
}

// flow follows values through one package.
type flow struct {
	tree    string
	p       *packages.Package
	sources map[types.Object][]source // the values given to a variable, parameter or field
	params  map[types.Object]bool
	uses    []use
}

func newFlow(tree string, p *packages.Package) *flow {
	f := &flow{tree: tree, p: p, sources: make(map[types.Object][]source), params: make(map[types.Object]bool)}
	for _, file := range p.Syntax {
		ast.Inspect(file, f.collect)
	}
	return f
}

// collect notes the values given to each object.
func (f *flow) collect(node ast.Node) bool {
	switch n := node.(type) {
	case *ast.FuncDecl:
		f.collectParams(n.Type)
	case *ast.FuncLit:
		f.collectParams(n.Type)
	case *ast.AssignStmt:
		for i, left := range n.Lhs {
			if len(n.Rhs) == len(n.Lhs) {
				f.give(f.object(left), n.Rhs[i])
			} else if i == 0 {
				f.give(f.object(left), n.Rhs[0])
			}
		}
	case *ast.ValueSpec:
		for i, name := range n.Names {
			if i < len(n.Values) {
				f.give(f.p.TypesInfo.Defs[name], n.Values[i])
			}
		}
	case *ast.RangeStmt:
		if n.Value != nil {
			f.give(f.object(n.Value), n.X)
		}
	case *ast.CompositeLit:
		f.collectFields(n)
	case *ast.CallExpr:
		f.collectArguments(n)
	}
	return true
}

func (f *flow) collectParams(t *ast.FuncType) {
	for _, field := range t.Params.List {
		for _, name := range field.Names {
			f.params[f.p.TypesInfo.Defs[name]] = true
		}
	}
}

func (f *flow) give(o types.Object, value ast.Expr) { f.giveAt(o, value, 0) }

func (f *flow) giveAt(o types.Object, value ast.Expr, index int) {
	if o != nil {
		f.sources[o] = append(f.sources[o], source{value, index})
	}
}

func (f *flow) object(e ast.Expr) types.Object {
	switch e := e.(type) {
	case *ast.Ident:
		return f.p.TypesInfo.ObjectOf(e)
	case *ast.SelectorExpr:
		return f.p.TypesInfo.ObjectOf(e.Sel)
	}
	return nil
}

func (f *flow) collectFields(lit *ast.CompositeLit) {
	t := f.p.TypesInfo.TypeOf(lit)
	if pointer, ok := t.Underlying().(*types.Pointer); ok {
		t = pointer.Elem()
	}
	s, ok := t.Underlying().(*types.Struct)
	if !ok {
		return
	}
	for i, element := range lit.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			f.give(f.object(pair.Key), pair.Value)
		} else {
			f.give(s.Field(i), element)
		}
	}
}

func (f *flow) collectArguments(call *ast.CallExpr) {
	signature, ok := f.p.TypesInfo.TypeOf(call.Fun).(*types.Signature)
	if !ok {
		return
	}
	var params *types.Tuple
	if o := f.object(ast.Unparen(call.Fun)); o != nil {
		if declared, ok := o.Type().(*types.Signature); ok {
			params = declared.Params()
		}
		for _, source := range f.sources[o] { // a variable that holds a function
			if lit, ok := source.Expr.(*ast.FuncLit); ok {
				f.giveLiteral(lit, call)
			}
		}
	}
	if params == nil {
		params = signature.Params()
	}
	for i, argument := range call.Args {
		if params.Len() == 0 {
			return
		}
		at := min(i, params.Len()-1)
		f.giveAt(params.At(at), argument, i-at)
	}
}

// giveLiteral gives arguments to the parameters of a function literal.
func (f *flow) giveLiteral(lit *ast.FuncLit, call *ast.CallExpr) {
	i := 0
	for _, field := range lit.Type.Params.List {
		for _, name := range field.Names {
			for at := i; at < len(call.Args) && (at == i || isVariadic(field)); at++ {
				f.giveAt(f.p.TypesInfo.Defs[name], call.Args[at], at-i)
			}
			i++
		}
	}
}

func isVariadic(field *ast.Field) bool {
	_, ok := field.Type.(*ast.Ellipsis)
	return ok
}

// lookAdminTool is Cowshed's own exec.LookPath.
const lookAdminTool = "github.com/cowshed/cowshed/internal/admintool.Look"

// follow looks at every call of os/exec.
func (f *flow) follow() {
	for _, file := range f.p.Syntax {
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			o := f.object(call.Fun)
			if o == nil || o.Pkg() == nil {
				return true
			}
			switch o.Pkg().Path() + "." + o.Name() {
			case "os/exec.Command":
				f.program(call.Args[0], call.Args[1:])
			case "os/exec.CommandContext":
				f.program(call.Args[1], call.Args[2:])
			case "os/exec.LookPath", lookAdminTool:
				f.program(call.Args[0], nil)
			}
			return true
		})
	}
}

// program adds the possible programs, and the commands of its script if it is a shell.
func (f *flow) program(name ast.Expr, args []ast.Expr) {
	for _, v := range f.values(name, all, make(map[types.Object]bool)) {
		if v.unknown != nil {
			f.add(use{expr: types.ExprString(v.unknown)}, v.unknown.Pos())
			continue
		}
		if v.text == "/proc/self/exe" {
			continue
		}
		f.add(use{command: filepath.Base(v.text)}, v.at)
		if !slices.Contains(shells, filepath.Base(v.text)) || len(args) < 2 {
			continue
		}
		for _, s := range f.values(args[1], all, make(map[types.Object]bool)) {
			if s.unknown != nil {
				f.add(use{expr: types.ExprString(s.unknown)}, s.unknown.Pos())
				continue
			}
			f.script(s)
		}
	}
}

func (f *flow) script(s value) {
	found, err := shellUses("", 1, s.text)
	if err != nil {
		f.add(use{expr: fmt.Sprintf("script that does not parse: %v", err)}, s.at)
	}
	for _, u := range found {
		f.add(use{command: u.command}, s.at)
	}
}

func (f *flow) add(u use, at token.Pos) {
	position := f.p.Fset.Position(at)
	file, err := filepath.Rel(f.tree, position.Filename)
	if err != nil || strings.HasPrefix(file, "..") {
		return // the main program of a test, which is generated
	}
	u.file, u.line = filepath.ToSlash(file), position.Line
	if u.command == "." || u.command == "/" {
		return
	}
	f.uses = append(f.uses, u)
}

// value is a possible value of an expression: a text, or another expression whose value only a run tells.
type value struct {
	text    string
	at      token.Pos
	unknown ast.Expr
}

// part names the part of a list of texts that is asked for.
type part int

const (
	all   part = iota
	first      // the program: the others are its arguments
)

// values returns the possible values of an expression.
func (f *flow) values(e ast.Expr, p part, seen map[types.Object]bool) []value {
	e = ast.Unparen(e)
	if v := f.p.TypesInfo.Types[e].Value; v != nil && v.Kind() == constant.String {
		return []value{{text: constant.StringVal(v), at: e.Pos()}}
	}
	switch e := e.(type) {
	case *ast.IndexExpr:
		return f.values(e.X, first, seen)
	case *ast.SliceExpr:
		return f.values(e.X, p, seen)
	case *ast.UnaryExpr:
		return f.values(e.X, p, seen)
	case *ast.CompositeLit:
		return f.elements(e, p, seen)
	case *ast.BinaryExpr:
		return f.joined(e, p, seen)
	case *ast.CallExpr:
		return f.result(e, p, seen)
	case *ast.Ident, *ast.SelectorExpr:
		o := f.object(e)
		if o == nil || seen[o] {
			return nil
		}
		seen[o] = true // in a circle
		defer delete(seen, o)
		sources, ok := f.sources[o]
		if !ok && !(f.params[o] && !token.IsExported(o.Name())) {
			return []value{{unknown: e}}
		}
		var found []value
		for _, s := range sources {
			if p == all || s.index == 0 {
				found = append(found, f.values(s.Expr, p, seen)...)
			}
		}
		return found
	}
	return []value{{unknown: e}}
}

// elements returns the values in a composite literal.
func (f *flow) elements(lit *ast.CompositeLit, p part, seen map[types.Object]bool) []value {
	var found []value
	for i, element := range lit.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			element = pair.Value
		}
		if _, text := f.p.TypesInfo.TypeOf(element).Underlying().(*types.Basic); text && p == first && i > 0 {
			break
		}
		found = append(found, f.values(element, p, seen)...)
	}
	return found
}

// joined returns the texts of a concatenation; unknown parts stand there as a word.
func (f *flow) joined(e *ast.BinaryExpr, p part, seen map[types.Object]bool) []value {
	var found []value
	left, right := f.values(e.X, p, seen), f.values(e.Y, p, seen)
	if len(left) == 0 {
		left = []value{{text: "unknown"}}
	}
	if len(right) == 0 {
		right = []value{{text: "unknown"}}
	}
	for _, l := range left {
		for _, r := range right {
			if l.unknown != nil {
				l = value{text: "./unknown"}
			}
			if r.unknown != nil {
				r = value{text: "unknown"}
			}
			found = append(found, value{text: l.text + r.text, at: e.Pos()})
		}
	}
	return found
}

// result returns the possible results of a call, as far as they are other values' names.
func (f *flow) result(call *ast.CallExpr, p part, seen map[types.Object]bool) []value {
	o := f.object(call.Fun)
	if o == nil {
		return []value{{unknown: call}}
	}
	name := o.Name()
	if o.Pkg() != nil {
		name = o.Pkg().Path() + "." + name
	}
	switch name {
	case "os/exec.LookPath", lookAdminTool, "path/filepath.Base", "strings.TrimSpace":
		return f.values(call.Args[0], p, seen)
	case "path/filepath.Join":
		return f.values(call.Args[len(call.Args)-1], p, seen)
	case "fmt.Sprintf":
		found := f.values(call.Args[0], p, seen)
		for i := range found {
			found[i].text = strings.NewReplacer("%s", "unknown", "%d", "1", "%q", "unknown", "%v", "unknown").Replace(found[i].text)
		}
		return found
	case "append":
		return f.values(call.Args[0], p, seen)
	case "os.Executable":
		return nil // the program itself
	}
	if function, ok := o.(*types.Func); ok && function.Pkg() == f.p.Types {
		return nil // its argument reaches os/exec in there
	}
	return []value{{unknown: call}}
}
