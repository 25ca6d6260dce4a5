# Completion of dnsprobe for fish.

set -l commands run watch check doctor

complete -c dnsprobe -f
complete -c dnsprobe -l help -d 'show help'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -l version -d 'show the version'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a run -d 'run the service in the foreground'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a watch -d 'print queries with their process trees as they are sent'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a check -d 'check a configuration and say all that is wrong with it'
complete -c dnsprobe -n "not __fish_seen_subcommand_from $commands" -a doctor -d 'show what this kernel offers and prove each path'
complete -c dnsprobe -n "__fish_seen_subcommand_from $commands" -l config -r -F -d configuration
complete -c dnsprobe -n '__fish_seen_subcommand_from run check' -l web.config.file -r -F -d 'TLS, headers and users of the HTTP side'
complete -c dnsprobe -n '__fish_seen_subcommand_from run' -l listen -x -d 'where to serve /metrics'
complete -c dnsprobe -n '__fish_seen_subcommand_from run' -l log-target -x -a 'auto journal console' -d 'where queries are logged'
complete -c dnsprobe -n '__fish_seen_subcommand_from watch doctor' -l json -d 'one JSON object a line'
