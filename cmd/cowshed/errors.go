package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/migrate"
)

// Exit codes. A script can tell by them what to do next.
const (
	exitOK           = 0
	exitFailure      = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitExists       = 4
	exitPrecondition = 5
	exitUnsupported  = 6
	exitFull         = 7
	exitPartial      = 8
	exitConflict     = 9
	exitSignal       = 128 // plus the number of the signal
)

const exitCodesHelp = `Exit codes of cowshed:

    0  done
    1  failed for another reason than those below, or cowshed doctor found something wrong
    2  the command line is wrong, or a name, size or option in it cannot be
    3  not found: a layer, image, file or store
    4  there is already something of that name
    5  not possible as things are: the layer is in use, sealed or part of an image, or the filesystem is
       read-only
    6  not supported here: by the filesystem, the kernel or this program
    7  no space: the filesystem is full, or a limit is reached
    8  not complete: cowshed migrate has listed the layers, images and containers that it has left out, or
       that are not as in the old root
    9  not merged: both sides have changed the paths that cowshed merge has listed
  128+N  stopped by signal N, after cleaning up: 130 for Ctrl-C, 143 for SIGTERM, 141 when the reader of
         the output went away`

func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "Meaning of the exit codes", Long: exitCodesHelp}
}

// usageError is a wrong command line.
type usageError struct{ error }

// Unwrap returns the reason.
func (e usageError) Unwrap() error { return e.error }

// usagef is a usageError with a message.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errReported ends a command that has printed its error itself.
var errReported = errors.New("reported")

// usageArgs makes errors of arguments usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// exitCode is the exit code for the kind of an error.
func exitCode(err error) int {
	var usage usageError
	var signalled signalError
	var partial *migrate.PartialError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &signalled):
		return exitSignal + int(signalled.signal)
	case errors.Is(err, syscall.EPIPE):
		return exitSignal + int(syscall.SIGPIPE)
	case errors.As(err, &partial):
		return exitPartial
	case errors.As(err, &usage), errdefs.IsInvalidArgument(err):
		return exitUsage
	case errdefs.IsConflict(err):
		return exitConflict
	case errdefs.IsNotFound(err):
		return exitNotFound
	case errdefs.IsAlreadyExists(err):
		return exitExists
	case fault.IsFull(err):
		return exitFull
	case errdefs.IsFailedPrecondition(err), errors.Is(err, syscall.EROFS):
		return exitPrecondition
	case errdefs.IsNotImplemented(err), graphdriver.IsDriverNotSupported(err):
		return exitUnsupported
	}
	return exitFailure
}

// withCause is err, or the signal that brought it about.
func withCause(ctx context.Context, err error) error {
	var signalled signalError
	if errors.As(context.Cause(ctx), &signalled) && !errors.As(err, &signalled) {
		return fmt.Errorf("%w: %w", signalled, err)
	}
	return err
}

// errorMessage is the message for people, "" if it has been printed already.
func errorMessage(err error) string {
	var signalled signalError
	switch {
	case errors.Is(err, errReported), errors.Is(err, syscall.EPIPE):
		return ""
	case errors.As(err, &signalled) && errors.Is(err, context.Canceled):
		return signalled.Error()
	}
	return err.Error()
}

// errorHint says what to do about an error, where that does not depend on the command.
func errorHint(cmd *cobra.Command, err error) string {
	var usage usageError
	var ambiguous *graphdriver.AmbiguousError
	switch {
	case errors.As(err, &usage):
		return fmt.Sprintf("Try: %s --help", cmd.CommandPath())
	case errors.As(err, &ambiguous):
		return "Try: --driver " + strings.Join(ambiguous.Drivers, " or --driver ")
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return refusedHint(os.Geteuid())
	}
	return layerstore.Advice(err)
}

// refusedHint says what to do where the kernel refuses something to a user.
func refusedHint(uid int) string {
	if uid == 0 {
		return "The kernel refuses this even to root. To see why, try: cowshed doctor"
	}
	return "Most commands of cowshed need root. Try: sudo cowshed, or cowshed doctor"
}

// failf is an error of a kind of errdefs, by which it has its exit code, with a message of its own.
func failf(kind error, format string, args ...any) error {
	return fault.Said(kind, format, args...)
}
