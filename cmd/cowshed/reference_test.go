package main

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/golden"
)

const (
	reference   = "../../docs/reference/"
	generatedBy = "<!-- Generated: go test ./cmd/cowshed -run Reference -update -->\n\n"
)

// documented makes the command tree as a user without variables of the environment has it.
func documented(t *testing.T) *cobra.Command {
	t.Helper()
	for _, name := range []string{rootEnv, driverEnv, nerdctlConfigEnv} {
		t.Setenv(name, "")
	}
	return newRootCommand()
}

// TestCommandReference: docs/reference/cli.md shows the help of each command.
func TestCommandReference(t *testing.T) {
	root := documented(t)
	var b strings.Builder
	b.WriteString("# Commands\n\n" + generatedBy)
	b.WriteString("`cowshed COMMAND --help` prints the same. `cowshed completion SHELL` prints completion for bash, zsh, fish and powershell.\n\n")
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "**%s**\n\n| command | purpose |\n|---|---|\n", strings.TrimSuffix(group.Title, ":"))
		for _, cmd := range root.Commands() {
			if cmd.GroupID == group.ID {
				fmt.Fprintf(&b, "| [%s](#%s) | %s |\n", cmd.CommandPath(), strings.ReplaceAll(cmd.CommandPath(), " ", "-"), cell(cmd.Short))
			}
		}
		b.WriteByte('\n')
	}
	writeCommand(&b, root)
	golden.Check(t, reference+"cli.md", strings.TrimRight(b.String(), "\n")+"\n")
}

// writeCommand writes the section of a command, and those of its subcommands. Topics of help have none.
func writeCommand(b *strings.Builder, cmd *cobra.Command) {
	if cmd.Hidden || cmd.IsAdditionalHelpTopicCommand() {
		return
	}
	fmt.Fprintf(b, "## %s\n\n", cmd.CommandPath())
	if cmd.Long != "" {
		writeParagraphs(b, cmd.Long)
	} else {
		b.WriteString(cmd.Short + ".\n\n")
	}
	if cmd.HasParent() && !cmd.HasSubCommands() {
		fmt.Fprintf(b, "```text\n%s\n```\n\n", cmd.UseLine())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(b, "Other names: `%s`.\n\n", strings.Join(cmd.Aliases, "`, `"))
	}
	writeFlags(b, cmd.NonInheritedFlags(), cmd.HasParent())
	if cmd.HasExample() {
		fmt.Fprintf(b, "```sh\n%s\n```\n\n", unindented(cmd.Example))
	}
	for _, sub := range cmd.Commands() {
		writeCommand(b, sub)
	}
}

// writeParagraphs writes the text of a help in Markdown. Paragraphs with indented lines keep their lines.
func writeParagraphs(b *strings.Builder, text string) {
	for _, paragraph := range strings.Split(strings.Trim(text, "\n"), "\n\n") {
		if strings.HasPrefix(paragraph, " ") || strings.Contains(paragraph, "\n ") {
			fmt.Fprintf(b, "```text\n%s\n```\n\n", paragraph)
			continue
		}
		b.WriteString(strings.NewReplacer("<", `\<`, "*", `\*`, "_", `\_`).Replace(paragraph) + "\n\n")
	}
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet, ofCommand bool) {
	if !flags.HasAvailableFlags() {
		return
	}
	if !ofCommand {
		b.WriteString("Flags of every command:\n\n")
	}
	b.WriteString("| flag | meaning | default |\n|---|---|---|\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if value != "" {
			name += " " + value
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, cell(usage), cell(shownDefault(f.DefValue)))
	})
	b.WriteByte('\n')
}

// shownDefault is "" for values that say nothing.
func shownDefault(value string) string {
	switch value {
	case "", "false", "0", "[]":
		return ""
	}
	return "`" + value + "`"
}

// cell makes text fit into a table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", `\<`, "\n", " ").Replace(text)
}

func unindented(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

// keyLine is a key of packaging/cowshed.toml with its default.
var keyLine = regexp.MustCompile(`^([a-z_]+) = (.*)$`)

// TestConfigurationReference: docs/reference/configuration.md has each key of the daemon's configuration, its default
// and its flag.
func TestConfigurationReference(t *testing.T) {
	serve, _, err := documented(t).Find([]string{"serve"})
	require.NoError(t, err)
	text, err := os.ReadFile("../../packaging/cowshed.toml")
	require.NoError(t, err)
	var b strings.Builder
	b.WriteString("# Configuration of the daemon\n\n" + generatedBy +
		"`cowshed serve` reads `" + daemon.DefaultConfigFile + "`, or the file that `--config` names. Unknown keys are errors. The flag of\n" +
		"a key overrides it. `packaging/cowshed.toml` has each key with its default.\n\n")
	keys := make(map[string]bool)
	blocks := strings.Split(strings.TrimSpace(string(text)), "\n\n")
	for _, block := range blocks[1:] { // the first describes the file
		var comment []string
		var found [][]string
		for line := range strings.SplitSeq(block, "\n") {
			if key := keyLine.FindStringSubmatch(line); key != nil {
				found = append(found, key)
			} else {
				comment = append(comment, strings.TrimPrefix(strings.TrimPrefix(line, "#"), " "))
			}
		}
		for i, key := range found {
			keys[key[1]] = true
			flag := "Flag: `--" + flagOf(key[1]) + "`."
			if key[1] == "api_namespaces" { // it has tables
				flag = "It has no flag."
			} else {
				require.NotNil(t, serve.Flag(flagOf(key[1])), "the flag of %s", key[1])
			}
			fmt.Fprintf(&b, "## %s\n\n", key[1])
			if i == 0 {
				writeComment(&b, comment)
			} else {
				fmt.Fprintf(&b, "See [%[1]s](#%[1]s).\n\n", found[0][1])
			}
			fmt.Fprintf(&b, "Default: `%s`. %s\n\n", key[2], flag)
		}
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[daemon.Config]()) {
		assert.True(t, keys[field.Tag.Get("toml")], field.Name)
	}
	golden.Check(t, reference+"configuration.md", strings.TrimRight(b.String(), "\n")+"\n")
}

// flagOf names the flag of a key.
func flagOf(key string) string {
	if key == "storage_options" {
		return "storage-opt"
	}
	return strings.ReplaceAll(key, "_", "-")
}

// writeComment writes a comment of the sample file. Indented lines are a table there.
func writeComment(b *strings.Builder, lines []string) {
	inTable := false
	for _, line := range lines {
		if indented := strings.HasPrefix(line, "  "); indented != inTable {
			fence := "\n```text\n"
			if inTable {
				fence = "```\n\n"
			}
			b.WriteString(fence)
			inTable = indented
		}
		b.WriteString(strings.TrimPrefix(line, "  ") + "\n")
	}
	if inTable {
		b.WriteString("```\n")
	}
	b.WriteByte('\n')
}

// TestErrorReference: docs/reference/errors.md has the exit codes and the kinds of errors.
func TestErrorReference(t *testing.T) {
	kinds := []struct {
		name, meaning string
		err           error
	}{
		{"errdefs.ErrInvalidArgument", "a name, size, option, label or file is malformed", errdefs.ErrInvalidArgument},
		{"errdefs.ErrNotFound", "the layer, snapshot, image, file or store does not exist", errdefs.ErrNotFound},
		{"errdefs.ErrAlreadyExists", "the name is taken", errdefs.ErrAlreadyExists},
		{"errdefs.ErrFailedPrecondition", "the object is in a state that forbids the operation: in use, sealed, part of an image, read-only", errdefs.ErrFailedPrecondition},
		{"errdefs.ErrNotImplemented", "the filesystem, the kernel or the program has no such function", errdefs.ErrNotImplemented},
		{"errdefs.ErrPermissionDenied", "the kernel or a registry refuses", errdefs.ErrPermissionDenied},
		{"errdefs.ErrResourceExhausted", "the filesystem is full, or a limit is reached", errdefs.ErrResourceExhausted},
		{"errdefs.ErrConflict", "a fork and the layer that it is merged into have changed the same paths", errdefs.ErrConflict},
		{"errdefs.ErrAborted", "another change came first: try again", errdefs.ErrAborted},
		{"errdefs.ErrUnavailable", "the filesystem or a daemon does not answer: try again later", errdefs.ErrUnavailable},
		{"errdefs.ErrDataLoss", "stored data is damaged", errdefs.ErrDataLoss},
		{"graphdriver.ErrPrerequisites", "wrong filesystem, a kernel module or device is missing, or the kernel's interface is not known", graphdriver.ErrPrerequisites},
		{"graphdriver.ErrIncompatibleFS", "the right filesystem in a state that the driver cannot work on", graphdriver.ErrIncompatibleFS},
		{"graphdriver.ErrNotSupported", "this platform has no such driver, or no driver has that name", graphdriver.ErrNotSupported},
	}
	var b strings.Builder
	b.WriteString("# Exit codes and kinds of errors\n\n" + generatedBy + "## Exit codes\n\n`cowshed help exit-codes` prints this.\n\n")
	fmt.Fprintf(&b, "```text\n%s\n```\n\n", exitCodesHelp)
	b.WriteString("## Kinds of errors\n\n" +
		"Errors of the library match one of these by `errors.Is`. The daemon answers containerd with the gRPC code. Metrics have\n" +
		"that code as the label `outcome`. Errors of system calls match their `syscall.Errno` too: `EDQUOT` at a limit, `ENOSPC` on a\n" +
		"full filesystem, `EROFS` on a read-only one. The command ends with 7 for the first two, and with 5 for the third.\n\n" +
		"| kind | meaning | exit code | outcome |\n|---|---|---|---|\n")
	for _, kind := range kinds {
		fmt.Fprintf(&b, "| `%s` | %s | %d | `%s` |\n", kind.name, kind.meaning, exitCode(kind.err), grpcOutcome(kind.err))
	}
	golden.Check(t, reference+"errors.md", b.String())
}

// grpcOutcome is the gRPC code of an error, in the form of the label outcome.
func grpcOutcome(err error) string {
	var b strings.Builder
	for i, c := range status.Code(errgrpc.ToGRPC(err)).String() {
		if unicode.IsUpper(c) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
