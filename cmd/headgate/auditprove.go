package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/headgate/headgate/audit"
)

// A prover is the flags of audit prove.
type prover struct {
	source             auditSource
	check, keys, since string
	asJSON             bool
}

func auditProveCommand(file *string) *cobra.Command {
	p := prover{source: auditSource{remote: remote{config: file}}}
	cmd := &cobra.Command{
		Use: "prove {SEQ | EPOCH-SEQ | EVENT-ID}", Short: "prove that a record stands in the log, and check such proofs",
		Long: `prove prints a proof that one record stands in the log: the record, its place, and the hashes that lead to a signed checkpoint,
as C2SP tlog-proof. A record is named by its number (of the newest epoch, or EPOCH-SEQ) or by its event id, of which the eight
characters of a refusal are enough. With --since CHECKPOINT and no record it proves that the log only grew since that checkpoint.

--check FILE checks a proof (- reads it from standard input) without log or network: with the key list of --keys, a copy of the
log's keys/N.pub that was kept elsewhere. Without --keys the log's own list is taken, which whoever owns its machine can make anew.

Exit codes: 0 good, 1 could not be done, 2 wrong use, 3 no such record, 10 the record is not what was signed, 12 shorter than the
checkpoint, 14 key unknown or outside its window, 15 the log was rewritten since the checkpoint.`,
		Example: "  headgate audit prove k7q2mxd4 > fetch.tlog-proof\n  headgate audit prove --check fetch.tlog-proof --keys kept/0.pub\n" +
			"  headgate audit prove --since kept/checkpoint > grew.proof\n  headgate audit prove --check grew.proof --since kept/checkpoint --keys kept/0.pub",
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.check != "" && len(args) > 0 || p.check == "" && (len(args) > 0) == (p.since != "") {
				return &useError{errors.New("want a record, --since or --check; see headgate audit prove --help")}
			}
			if p.check != "" {
				return p.checkFile(cmd)
			}
			return p.prove(cmd, args)
		},
	}
	p.source.flags(cmd)
	cmd.Flags().StringVar(&p.check, "check", "", "check the proof in `FILE`")
	cmd.Flags().StringVar(&p.keys, "keys", "", "`FILE` with the key list to trust, for --check (default: the log's own)")
	cmd.Flags().StringVar(&p.since, "since", "", "`FILE` with a checkpoint that was kept")
	cmd.Flags().BoolVar(&p.asJSON, "json", false, "print what --check found as JSON")
	return cmd
}

// prove prints a proof.
func (p *prover) prove(cmd *cobra.Command, args []string) error {
	log, err := p.source.open()
	if err != nil {
		return err
	}
	var text []byte
	if len(args) == 0 {
		since, rerr := readProof(cmd, p.since)
		if rerr != nil {
			return rerr
		}
		text, err = log.ProveSince(cmd.Context(), since)
	} else {
		text, err = log.Prove(cmd.Context(), args[0])
	}
	if err != nil {
		return err
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}

// checkFile checks a proof.
func (p *prover) checkFile(cmd *cobra.Command) error {
	text, err := readProof(cmd, p.check)
	if err != nil {
		return err
	}
	keys, err := p.trusted()
	if err != nil {
		return err
	}
	var shown *audit.Proved
	if p.since != "" {
		since, rerr := readProof(cmd, p.since)
		if rerr != nil {
			return rerr
		}
		shown, err = audit.CheckConsistency(text, since, keys)
	} else {
		shown, err = audit.CheckProof(text, keys)
	}
	if err != nil {
		return err
	}
	if p.asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(shown)
	}
	return printProved(cmd.OutOrStdout(), shown)
}

// trusted returns the keys that a proof is checked with.
func (p *prover) trusted() (string, error) {
	if p.keys != "" {
		b, err := os.ReadFile(p.keys)
		if err != nil {
			return "", fmt.Errorf("reading key list: %w", err)
		}
		return string(b), nil
	}
	if p.source.remote.url != "" {
		return "", &useError{errors.New("--check with --url needs --keys: a gateway's own word proves nothing about it")}
	}
	dir, err := auditDir(p.source.remote.config, p.source.dir)
	if err != nil {
		return "", err
	}
	return audit.NewArchive(dir).Keys()
}

// readProof reads a proof or checkpoint, which may come from anybody, up to a size that none has.
func readProof(cmd *cobra.Command, name string) ([]byte, error) {
	const most = 1 << 20
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("reading proof: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading proof: %w", err)
	}
	if len(b) > most {
		return nil, fmt.Errorf("reading proof: %s has more than %d bytes", name, most)
	}
	return b, nil
}

func printProved(w io.Writer, p *audit.Proved) error {
	tree := fmt.Sprintf("%s, %d records, root %s, signed for %s", p.Origin, p.Size, p.Root, p.Time.Format(time.RFC3339))
	if p.Record == nil {
		_, err := fmt.Fprintf(w, "good: the log only grew, up to %s\n", audit.EscapeTerminal(tree))
		return err
	}
	if _, err := fmt.Fprintf(w, "good: record %d of %s\n", p.Seq, audit.EscapeTerminal(tree)); err != nil {
		return err
	}
	return printEntry(w, audit.Entry{Seq: p.Seq, Raw: p.Record}, false)
}
