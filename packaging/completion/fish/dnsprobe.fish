# Completion of dnsprobe for fish.

set -l commands run watch tree check doctor

complete -c dnsprobe -f
complete -c dnsprobe -l help -d 'show help'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -l version -d 'show the version'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a run -d 'run the service in the foreground'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a watch -d 'print queries with their process trees as they are sent'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a tree -d 'show the counts of a running dnsprobe as a tree'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a check -d 'check a configuration and report every error in it'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'show what this kernel offers and prove each path'
complete -c dnsprobe -n "__fish_seen_subcommand_from $commands" -l config -r -F -d configuration
complete -c dnsprobe -n '__fish_seen_subcommand_from run check' -l web.config.file -r -F -d 'TLS, headers and users of the HTTP server'
complete -c dnsprobe -n '__fish_seen_subcommand_from run' -l listen -x -d 'address of /metrics'
complete -c dnsprobe -n '__fish_seen_subcommand_from run' -l log-target -x -a 'auto journal console' -d 'where queries are logged'
complete -c dnsprobe -n '__fish_seen_subcommand_from watch doctor' -l json -d 'one JSON object per line'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l url -x -d 'URL of the daemon'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l domain -x -d 'only queries for this rule'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l unit -x -d 'only queries of this unit'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l by -x -a 'domain qtype transport to unit container user server rcode' -d 'one tree for each value of a label'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l watch -d 'repeat'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l folded -d 'folded stacks'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l json -d 'one JSON document'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l cacert -r -F -d 'certificates to trust'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l cert -r -F -d 'client certificate'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l key -r -F -d 'key of the client certificate'
complete -c dnsprobe -n '__fish_seen_subcommand_from tree' -l user -x -d 'user name'
